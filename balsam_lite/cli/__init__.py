"""The command line. click is imported only here, and every command calls functions of the library.

main        the entry point; answers `--version` before anything is imported
run         one command line, from its words to its exit code: errors, warnings, Ctrl-C, closed pipes
group       the table of commands, each imported when it is called, and the options as Balsam 0.3 took them
common      shared by commands: opening the DB, querying sites, asking the user, kinds of options
selection   the options that choose jobs
completion  what shells offer for words that are in the DB
listing     the objects and options of listings; output: tables, JSON and text on the terminal
others      the commands
"""
