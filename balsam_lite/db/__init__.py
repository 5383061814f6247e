"""The database: one SQLite file in a directory, and all the SQL of the program.

engine         the file and its directory: finding and opening it, transactions, schema and migrations, file systems, repair
store          every write
query          every read, except the query sets of `manager`
models         the models of Balsam 0.3: BalsamJob, ApplicationDefinition and their `objects`
applications   the model of applications
manager        query sets
record         a copy of a row that knows its changed fields
collected      additions collected in memory for `dag.transaction`
launch_params  conversion between `launch_params` and the fields of a job
"""
