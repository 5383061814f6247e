"""Sites on other hosts, through ssh."""
