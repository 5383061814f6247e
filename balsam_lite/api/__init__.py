"""The Python interface of the workshop's page (Balsam 0.7): jobs, applications, batch jobs and events of one or more sites."""
