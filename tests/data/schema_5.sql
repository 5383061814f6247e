BEGIN TRANSACTION;
CREATE TABLE app (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL DEFAULT '',
    description TEXT NOT NULL DEFAULT '',
    executable TEXT NOT NULL DEFAULT '',
    preprocess TEXT NOT NULL DEFAULT '',
    envscript TEXT NOT NULL DEFAULT '',
    postprocess TEXT NOT NULL DEFAULT '',
    definition TEXT NOT NULL DEFAULT '{}',
    command_template TEXT NOT NULL DEFAULT '',
    parameters TEXT NOT NULL DEFAULT '{}',
    environ_vars TEXT NOT NULL DEFAULT '{}',
    handle_error TEXT NOT NULL DEFAULT '',
    handle_timeout TEXT NOT NULL DEFAULT '',
    exit_0_is_done_after_stop INTEGER NOT NULL DEFAULT 0
);
INSERT INTO "app" VALUES(1,'sh','a shell''s line','bash -c','','','','{}','','{}','{}','','',0);
INSERT INTO "app" VALUES(2,'staged','','bash -c','bash -c true','','true','{}','','{}','{}','','',0);
CREATE TABLE batch_job (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    scheduler_id TEXT NOT NULL DEFAULT '',
    scheduler TEXT NOT NULL DEFAULT '',
    project TEXT NOT NULL DEFAULT '',
    queue TEXT NOT NULL DEFAULT '',
    nodes INTEGER NOT NULL DEFAULT 0,
    wall_minutes INTEGER NOT NULL DEFAULT 0,
    job_mode TEXT NOT NULL DEFAULT '',
    wf_filter TEXT NOT NULL DEFAULT '',
    filter_tags TEXT NOT NULL DEFAULT '{}',
    sched_flags TEXT NOT NULL DEFAULT '',
    command TEXT NOT NULL DEFAULT '',
    state TEXT NOT NULL DEFAULT 'pending-submission',
    reason TEXT NOT NULL DEFAULT '',
    prescheduled_only INTEGER NOT NULL DEFAULT 0,
    from_balsam INTEGER NOT NULL DEFAULT 1,
    created INTEGER NOT NULL DEFAULT 0,
    started INTEGER,
    ended INTEGER,
    exit_code INTEGER,
    log TEXT NOT NULL DEFAULT '',
    partitions TEXT NOT NULL DEFAULT '[]',
    optional_params TEXT NOT NULL DEFAULT '{}',
    absent INTEGER,
    cluster TEXT NOT NULL DEFAULT '',
    tries INTEGER NOT NULL DEFAULT 1
);
INSERT INTO "batch_job" VALUES(1,'1','LocalScheduler@laptop:/tmp/old-balsam/.balsam/local-scheduler','datascience','none',1,5,'serial','nothing','{}','','/tmp/old-balsam/db/qsubmit/qlaunch1.sh','submitted','',0,1,1778734192981621,NULL,NULL,NULL,'/tmp/old-balsam/db/qsubmit/qlaunch1.out','[]','{}',NULL,'',1);
CREATE TABLE dependency (
    parent INTEGER NOT NULL,
    child INTEGER NOT NULL,
    PRIMARY KEY (parent, child)
) WITHOUT ROWID;
INSERT INTO "dependency" VALUES(1,2);
INSERT INTO "dependency" VALUES(1,3);
INSERT INTO "dependency" VALUES(3,4);
INSERT INTO "dependency" VALUES(1,5);
INSERT INTO "dependency" VALUES(6,7);
INSERT INTO "dependency" VALUES(10,12);
INSERT INTO "dependency" VALUES(11,12);
INSERT INTO "dependency" VALUES(10,14);
INSERT INTO "dependency" VALUES(11,14);
CREATE TABLE event (
    id INTEGER PRIMARY KEY,
    job INTEGER NOT NULL,
    time INTEGER NOT NULL,
    from_state TEXT NOT NULL,
    to_state TEXT NOT NULL,
    message TEXT NOT NULL DEFAULT '',
    data TEXT
);
INSERT INTO "event" VALUES(1,2,1778734191096933,'CREATED','AWAITING_PARENTS','',NULL);
INSERT INTO "event" VALUES(2,3,1778734191098757,'CREATED','AWAITING_PARENTS','',NULL);
INSERT INTO "event" VALUES(3,4,1778734191100471,'CREATED','AWAITING_PARENTS','',NULL);
INSERT INTO "event" VALUES(4,5,1778734191101893,'CREATED','AWAITING_PARENTS','',NULL);
INSERT INTO "event" VALUES(5,7,1778734191104417,'CREATED','AWAITING_PARENTS','',NULL);
INSERT INTO "event" VALUES(6,1,1778734192110275,'CREATED','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(7,1,1778734192110275,'PREPROCESSED','RUNNING','','{"lease":1}');
INSERT INTO "event" VALUES(8,6,1778734192110275,'CREATED','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(9,6,1778734192110275,'PREPROCESSED','RUNNING','','{"lease":1}');
INSERT INTO "event" VALUES(10,1,1778734192133191,'RUNNING','RUN_DONE','','{"started":1796014192130379}');
INSERT INTO "event" VALUES(11,1,1778734192133191,'RUN_DONE','JOB_FINISHED','',NULL);
INSERT INTO "event" VALUES(12,6,1778734192134372,'RUNNING','RUN_ERROR','nonzero return 3','{"started":1796014192130846,"return_code":3}');
INSERT INTO "event" VALUES(13,6,1778734192134372,'RUN_ERROR','FAILED','',NULL);
INSERT INTO "event" VALUES(14,2,1778734192135256,'AWAITING_PARENTS','READY','',NULL);
INSERT INTO "event" VALUES(15,3,1778734192135256,'AWAITING_PARENTS','READY','',NULL);
INSERT INTO "event" VALUES(16,5,1778734192135256,'AWAITING_PARENTS','READY','',NULL);
INSERT INTO "event" VALUES(17,7,1778734192135256,'AWAITING_PARENTS','FAILED','One or more parent jobs failed','{"parent":6}');
INSERT INTO "event" VALUES(18,9,1778734192135256,'CREATED','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(19,2,1778734192135256,'READY','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(20,2,1778734192135256,'PREPROCESSED','RUNNING','','{"lease":1}');
INSERT INTO "event" VALUES(21,9,1778734192135256,'PREPROCESSED','RUNNING','','{"lease":1}');
INSERT INTO "event" VALUES(22,2,1778734192143056,'RUNNING','RUN_DONE','','{"started":1796014192139427}');
INSERT INTO "event" VALUES(23,2,1778734192143056,'RUN_DONE','JOB_FINISHED','',NULL);
INSERT INTO "event" VALUES(24,9,1778734192141437,'RUNNING','RUN_DONE','','{"started":1796014192139567}');
INSERT INTO "event" VALUES(25,9,1778734192146114,'RUN_DONE','POSTPROCESSED','',NULL);
INSERT INTO "event" VALUES(26,9,1778734192146114,'POSTPROCESSED','JOB_FINISHED','',NULL);
INSERT INTO "event" VALUES(27,5,1778734192459351,'READY','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(28,5,1778734192459351,'PREPROCESSED','RUNNING','','{"lease":2}');
INSERT INTO "event" VALUES(29,5,1778734192527458,'RUNNING','RUN_TIMEOUT','Told to stop at 11-30-2026 04:49:52.524118, killed by signal 15 (SIGTERM)','{"started":1796014192462385,"return_code":-15}');
INSERT INTO "event" VALUES(30,5,1778734192527458,'RUN_TIMEOUT','RESTART_READY','',NULL);
INSERT INTO "event" VALUES(31,8,1778734192773827,'CREATED','USER_KILLED','',NULL);
INSERT INTO "event" VALUES(32,1,1778734192798059,'JOB_FINISHED','RESTART_READY','User mutated state from Python',NULL);
INSERT INTO "event" VALUES(33,3,1778734192798059,'READY','AWAITING_PARENTS','A parent has yet to finish',NULL);
INSERT INTO "event" VALUES(34,5,1778734192798059,'RESTART_READY','AWAITING_PARENTS','A parent has yet to finish',NULL);
INSERT INTO "event" VALUES(35,12,1778734192803996,'CREATED','AWAITING_PARENTS','',NULL);
INSERT INTO "event" VALUES(36,10,1778734194753875,'CREATED','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(37,10,1778734194753875,'PREPROCESSED','RUNNING','','{"lease":4}');
INSERT INTO "event" VALUES(38,11,1778734194753875,'CREATED','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(39,11,1778734194753875,'PREPROCESSED','RUNNING','','{"lease":4}');
CREATE TABLE job (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id TEXT NOT NULL,
    workflow TEXT NOT NULL DEFAULT '',
    name TEXT NOT NULL DEFAULT '',
    description TEXT NOT NULL DEFAULT '',
    lease INTEGER,
    input_files TEXT NOT NULL DEFAULT '*',
    stage_in_url TEXT NOT NULL DEFAULT '',
    stage_out_files TEXT NOT NULL DEFAULT '',
    stage_out_url TEXT NOT NULL DEFAULT '',
    wall_time_minutes INTEGER NOT NULL DEFAULT 1,
    num_nodes INTEGER NOT NULL DEFAULT 1,
    coschedule_num_nodes INTEGER NOT NULL DEFAULT 0,
    ranks_per_node INTEGER NOT NULL DEFAULT 1,
    cpu_affinity TEXT NOT NULL DEFAULT 'none',
    threads_per_rank INTEGER NOT NULL DEFAULT 1,
    threads_per_core INTEGER NOT NULL DEFAULT 1,
    node_packing_count INTEGER NOT NULL DEFAULT 1,
    environ_vars TEXT NOT NULL DEFAULT '{}',
    application TEXT NOT NULL DEFAULT '',
    args TEXT NOT NULL DEFAULT '',
    user_workdir TEXT NOT NULL DEFAULT '',
    wait_for_parents INTEGER NOT NULL DEFAULT 1,
    post_error_handler INTEGER NOT NULL DEFAULT 0,
    post_timeout_handler INTEGER NOT NULL DEFAULT 0,
    auto_timeout_retry INTEGER NOT NULL DEFAULT 1,
    state TEXT NOT NULL DEFAULT 'CREATED',
    queued_launch_id INTEGER,
    data TEXT NOT NULL DEFAULT '{}',
    tags TEXT NOT NULL DEFAULT '{}',
    parameters TEXT NOT NULL DEFAULT '{}',
    gpus_per_rank  NOT NULL DEFAULT 0,
    priority INTEGER NOT NULL DEFAULT 0,
    restart_limit INTEGER NOT NULL DEFAULT 10,
    workdir TEXT NOT NULL DEFAULT '',
    return_code INTEGER,
    attempt INTEGER NOT NULL DEFAULT 0,
    restarts INTEGER NOT NULL DEFAULT 0,
    unfinished_parents INTEGER NOT NULL DEFAULT 0,
    created INTEGER NOT NULL DEFAULT 0,
    origin TEXT NOT NULL DEFAULT '',
    max_retries INTEGER NOT NULL DEFAULT 0,
    retry_codes TEXT NOT NULL DEFAULT '',
    retries INTEGER NOT NULL DEFAULT 0,
    mpi_flags TEXT NOT NULL DEFAULT '',
    run_when TEXT NOT NULL DEFAULT 'all_finished',
    exit_0_is_done_after_stop INTEGER NOT NULL DEFAULT 0,
    start_after INTEGER,
    told_to_stop INTEGER
);
INSERT INTO "job" VALUES(1,'bf7e3ca7-f950-42d0-be84-5cfb0e09a53f','first','done','it''s "kept"',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{"A": "1=2"}','sh','''echo done > done.txt''','',1,0,0,1,'RESTART_READY',NULL,'{"x": [1, "ü", null]}','{"size": "big", "colour": "red"}','{}',0,0,10,'first/done_bf7e3ca7',0,1,0,0,1778734191093584,'',0,'',0,'','all_finished',0,NULL,NULL);
INSERT INTO "job" VALUES(2,'7a5d0fa2-c0e8-420b-b4fa-e52c8828646b','first','child-done','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''cat done.txt''','',1,0,0,1,'JOB_FINISHED',NULL,'{}','{}','{}',0,0,10,'first/child-done_7a5d0fa2',0,1,0,1,1778734191096613,'',0,'',0,'','all_finished',0,NULL,NULL);
INSERT INTO "job" VALUES(3,'9edbf824-0a7c-4d2b-ac95-b9d29947f659','later','child-late','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',1,0,0,1,'AWAITING_PARENTS',NULL,'{}','{"size": "small"}','{}',0,0,10,'later/child-late_9edbf824',NULL,0,0,1,1778734191098479,'',0,'',0,'','all_finished',0,NULL,NULL);
INSERT INTO "job" VALUES(4,'6ff53f77-5aac-46a4-bd87-12ff81b72982','later','grandchild-late','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',1,0,0,1,'AWAITING_PARENTS',NULL,'{}','{}','{}',0,0,10,'later/grandchild-late_6ff53f77',NULL,0,0,1,1778734191100293,'',0,'',0,'','all_finished',0,NULL,NULL);
INSERT INTO "job" VALUES(5,'805e6fa8-1805-4107-b263-58fcbdc59c5b','second','child-timed-out','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''test $BALSAM_ATTEMPT -gt 1 || sleep 60''','',1,0,0,1,'AWAITING_PARENTS',NULL,'{}','{}','{}',0,0,10,'second/child-timed-out_805e6fa8',-15,1,1,1,1778734191101726,'',0,'',0,'','all_finished',0,NULL,1796014192524118);
INSERT INTO "job" VALUES(6,'1dac1231-1769-4bbb-b118-15f26e2debd3','first','failed','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''exit 3''','',1,0,0,1,'FAILED',NULL,'{}','{}','{}',0,0,10,'first/failed_1dac1231',3,1,0,0,1778734191103071,'',0,'',0,'','all_finished',0,NULL,NULL);
INSERT INTO "job" VALUES(7,'65b1500f-1310-40a2-b075-e8f85974c29b','first','child-failed','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',1,0,0,1,'FAILED',NULL,'{}','{}','{}',0,0,10,'first/child-failed_65b1500f',NULL,0,0,1,1778734191104261,'',0,'',0,'','all_finished',0,NULL,NULL);
INSERT INTO "job" VALUES(8,'bd10a4f5-9538-4771-b09a-41074ab603f6','later','killed','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',1,0,0,1,'USER_KILLED',NULL,'{}','{}','{}',0,0,10,'later/killed_bd10a4f5',NULL,0,0,0,1778734191105403,'',0,'',0,'','all_finished',0,NULL,NULL);
INSERT INTO "job" VALUES(9,'1466c2d4-22ea-460a-b7d9-8d20ed3371cf','first','staged','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','staged','''true''','',1,0,0,1,'JOB_FINISHED',NULL,'{}','{}','{}',0,0,10,'first/staged_1466c2d4',0,1,0,0,1778734191106491,'',0,'',0,'','all_finished',0,NULL,NULL);
INSERT INTO "job" VALUES(10,'144189d4-4521-468c-98ee-b0b6c647cbe7','third','running0','',4,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''test $BALSAM_ATTEMPT -gt 1 || sleep 60''','',1,0,0,1,'RUNNING',NULL,'{}','{}','{}',0,0,10,'third/running0_144189d4',NULL,1,0,0,1778734192800942,'',0,'',0,'','all_finished',0,NULL,NULL);
INSERT INTO "job" VALUES(11,'f132af38-7a9d-4fb7-a21a-23321b4834ef','third','running1','',4,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''test $BALSAM_ATTEMPT -gt 1 || sleep 60''','',1,0,0,1,'RUNNING',NULL,'{}','{}','{}',0,0,10,'third/running1_f132af38',NULL,1,0,0,1778734192802213,'',0,'',0,'','all_finished',0,NULL,NULL);
INSERT INTO "job" VALUES(12,'cb63d181-f9c7-4222-b7dc-7f400a7600d4','third','child-running','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',1,0,0,1,'AWAITING_PARENTS',NULL,'{}','{}','{}',0,0,10,'third/child-running_cb63d181',NULL,0,0,2,1778734192803811,'',0,'',0,'','all_finished',0,NULL,NULL);
INSERT INTO "job" VALUES(13,'e1d19c4c-961d-4b2d-8da4-485c93dce74a','third','waiting','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',1,0,0,1,'CREATED',NULL,'{}','{}','{}',0,-1,10,'third/waiting_e1d19c4c',NULL,0,0,0,1778734192805018,'',0,'',0,'','all_finished',0,NULL,NULL);
INSERT INTO "job" VALUES(14,'5868baa3-ce20-4873-a81d-e8df7d018efb','later','no-wait','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',0,0,0,1,'CREATED',NULL,'{}','{}','{}',0,0,10,'later/no-wait_5868baa3',NULL,0,0,0,1778734192806406,'',0,'',0,'','all_finished',0,NULL,NULL);
INSERT INTO "job" VALUES(15,'9e7f8193-cd1e-49a4-a7df-0dec8e68c6e3','','bulk0','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','true','',1,0,0,1,'CREATED',NULL,'{}','{}','{}',0,0,10,'bulk0_9e7f8193',NULL,0,0,0,1778734192807663,'',0,'',0,'','all_finished',0,NULL,NULL);
INSERT INTO "job" VALUES(16,'058d5995-dc92-4fe0-b354-ae8c7103c305','','bulk1','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','true','',1,0,0,1,'CREATED',NULL,'{}','{}','{}',0,0,10,'bulk1_058d5995',NULL,0,0,0,1778734192807663,'',0,'',0,'','all_finished',0,NULL,NULL);
INSERT INTO "job" VALUES(17,'938aac39-37af-4881-9303-6d74f3914c13','','bulk2','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','true','',1,0,0,1,'CREATED',NULL,'{}','{}','{}',0,0,10,'bulk2_938aac39',NULL,0,0,0,1778734192807663,'',0,'',0,'','all_finished',0,NULL,NULL);
INSERT INTO "job" VALUES(18,'cd63b93a-b236-4c9c-94af-c93a8c89929c','','bulk3','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','true','',1,0,0,1,'CREATED',NULL,'{}','{}','{}',0,0,10,'bulk3_cd63b93a',NULL,0,0,0,1778734192807663,'',0,'',0,'','all_finished',0,NULL,NULL);
INSERT INTO "job" VALUES(19,'df8b9358-a3a2-4a75-b549-5dc3e3278bc3','','bulk4','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','true','',1,0,0,1,'CREATED',NULL,'{}','{}','{}',0,0,10,'bulk4_df8b9358',NULL,0,0,0,1778734192807663,'',0,'',0,'','all_finished',0,NULL,NULL);
CREATE TABLE job_tag (tag INTEGER NOT NULL, job INTEGER NOT NULL, PRIMARY KEY (tag, job)) WITHOUT ROWID;
INSERT INTO "job_tag" VALUES(1,1);
INSERT INTO "job_tag" VALUES(2,1);
INSERT INTO "job_tag" VALUES(3,3);
CREATE TABLE lease (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    host TEXT NOT NULL,
    pid_namespace TEXT NOT NULL,
    pid INTEGER NOT NULL,
    started TEXT NOT NULL,
    scheduler_id TEXT NOT NULL DEFAULT '',
    opened INTEGER NOT NULL,
    heartbeat INTEGER NOT NULL,
    closed INTEGER,
    end_reason TEXT NOT NULL DEFAULT '',
    note TEXT NOT NULL DEFAULT ''
);
INSERT INTO "lease" VALUES(1,'launcher','laptop','pid:[4026531836]',16307,'1232908','',1778734191359864,1778734191368579,1778734192148322,'every job has ended','');
INSERT INTO "lease" VALUES(2,'launcher','laptop','pid:[4026531836]',16318,'1233018','',1778734192450456,1778734192452802,1778734192530742,'signal SIGTERM; 1 job(s) left: waits for a free place (1)','');
INSERT INTO "lease" VALUES(3,'launcher','laptop','pid:[4026531836]',16327,'1233103','1',1778734193439488,1778734193440780,1778734194465990,'no job of workflow nothing came','');
INSERT INTO "lease" VALUES(4,'launcher','laptop','pid:[4026531836]',16330,'1233247','',1778734194743904,1778734194746079,NULL,'','');
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO "meta" VALUES('file','[2146876, "laptop", "/tmp/old-balsam/db/balsam.sqlite3"]');
INSERT INTO "meta" VALUES('id','2f9a8cfef0338f74c05ba87935ded3a9');
CREATE TABLE state_count (state TEXT PRIMARY KEY, jobs INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO "state_count" VALUES('AWAITING_PARENTS',4);
INSERT INTO "state_count" VALUES('CREATED',7);
INSERT INTO "state_count" VALUES('FAILED',2);
INSERT INTO "state_count" VALUES('JOB_FINISHED',2);
INSERT INTO "state_count" VALUES('POSTPROCESSED',0);
INSERT INTO "state_count" VALUES('PREPROCESSED',0);
INSERT INTO "state_count" VALUES('READY',0);
INSERT INTO "state_count" VALUES('RESTART_READY',1);
INSERT INTO "state_count" VALUES('RUNNING',2);
INSERT INTO "state_count" VALUES('RUN_DONE',0);
INSERT INTO "state_count" VALUES('RUN_ERROR',0);
INSERT INTO "state_count" VALUES('RUN_TIMEOUT',0);
INSERT INTO "state_count" VALUES('STAGED_IN',0);
INSERT INTO "state_count" VALUES('USER_KILLED',1);
CREATE TABLE tag (id INTEGER PRIMARY KEY, key TEXT NOT NULL, value TEXT NOT NULL, UNIQUE (key, value));
INSERT INTO "tag" VALUES(1,'size','big');
INSERT INTO "tag" VALUES(2,'colour','red');
INSERT INTO "tag" VALUES(3,'size','small');
CREATE VIEW history AS
    SELECT id AS job, 0 AS id, created AS time, '' AS from_state, 'CREATED' AS to_state, origin AS message, NULL AS data
    FROM job
    UNION ALL SELECT job, id, time, from_state, to_state, message, data FROM event;
CREATE UNIQUE INDEX job_short_id ON job (substr(job_id, 1, 8));
CREATE INDEX job_unprepared ON job (num_nodes, ranks_per_node, node_packing_count, gpus_per_rank, priority DESC, wall_time_minutes DESC) WHERE lease IS NULL AND start_after IS NULL AND unfinished_parents = 0 AND state IN ('CREATED', 'READY', 'STAGED_IN');
CREATE INDEX job_unprepared_of_workflow ON job (workflow, num_nodes, ranks_per_node, node_packing_count, gpus_per_rank, priority DESC, wall_time_minutes DESC) WHERE lease IS NULL AND start_after IS NULL AND unfinished_parents = 0 AND state IN ('CREATED', 'READY', 'STAGED_IN');
CREATE INDEX job_runnable ON job (num_nodes, ranks_per_node, node_packing_count, gpus_per_rank, priority DESC, wall_time_minutes DESC) WHERE lease IS NULL AND start_after IS NULL AND unfinished_parents = 0 AND state IN ('PREPROCESSED', 'RESTART_READY');
CREATE INDEX job_runnable_of_workflow ON job (workflow, num_nodes, ranks_per_node, node_packing_count, gpus_per_rank, priority DESC, wall_time_minutes DESC) WHERE lease IS NULL AND start_after IS NULL AND unfinished_parents = 0 AND state IN ('PREPROCESSED', 'RESTART_READY');
CREATE INDEX job_unprepared_of_launch ON job (queued_launch_id, num_nodes, ranks_per_node, node_packing_count, gpus_per_rank, priority DESC, wall_time_minutes DESC) WHERE lease IS NULL AND start_after IS NULL AND unfinished_parents = 0 AND state IN ('CREATED', 'READY', 'STAGED_IN') AND queued_launch_id IS NOT NULL;
CREATE INDEX job_runnable_of_launch ON job (queued_launch_id, num_nodes, ranks_per_node, node_packing_count, gpus_per_rank, priority DESC, wall_time_minutes DESC) WHERE lease IS NULL AND start_after IS NULL AND unfinished_parents = 0 AND state IN ('PREPROCESSED', 'RESTART_READY') AND queued_launch_id IS NOT NULL;
CREATE INDEX job_unsettled ON job (state) WHERE lease IS NULL AND state IN ('RUN_DONE', 'POSTPROCESSED', 'RUN_ERROR', 'RUN_TIMEOUT');
CREATE INDEX job_start_after ON job (start_after) WHERE start_after IS NOT NULL;
CREATE INDEX job_own_workdir ON job (workdir) WHERE substr(workdir, -8) <> substr(job_id, 1, 8);
CREATE INDEX job_hex_name ON job (name) WHERE name > '' AND name NOT GLOB '*[^0-9A-Fa-f-]*';
CREATE INDEX job_lease ON job (lease) WHERE lease IS NOT NULL;
CREATE INDEX job_state ON job (state);
CREATE INDEX job_workflow ON job (workflow);
CREATE INDEX job_queued_launch ON job (queued_launch_id) WHERE queued_launch_id IS NOT NULL;
CREATE UNIQUE INDEX app_name ON app (name);
CREATE INDEX dependency_child ON dependency (child, parent);
CREATE INDEX event_job ON event (job);
CREATE INDEX event_time ON event (time);
CREATE INDEX lease_open ON lease (id) WHERE closed IS NULL;
CREATE INDEX batch_job_scheduler_id ON batch_job (scheduler_id);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('app',2);
INSERT INTO "sqlite_sequence" VALUES('job',19);
INSERT INTO "sqlite_sequence" VALUES('lease',4);
INSERT INTO "sqlite_sequence" VALUES('batch_job',1);
COMMIT;
PRAGMA user_version = 5;
