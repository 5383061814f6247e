"""The database: one SQLite file in a directory, and all the SQL of the program.

location    which directory, what lies in it, which DBs are known
filesystem  is the directory on a local disk or on a shared file system
connection  the two ways of opening the file; read and write transactions
schema      the tables; migrations: from one schema version to the next
store       every write
queries     every read (but for what users ask through `models`)
models      what users hold: BalsamJob, ApplicationDefinition and their `objects`
"""
