"""The command line. Only here is click imported, and nothing here can do what the library cannot.

main    the entry point; answers `--version` before anything is imported
run     one command line from its words to its exit code: errors, warnings, Ctrl-C, closed pipes
group   the table of commands, each imported when it is called for; the old spellings of options
common  what several commands share: opening the DB, questions, kinds of options
layout  rows as text; knows neither click nor the DB
others  the commands, one module per noun
"""
