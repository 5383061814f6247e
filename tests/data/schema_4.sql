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
    handle_timeout TEXT NOT NULL DEFAULT ''
);
INSERT INTO "app" VALUES(1,'sh','a shell''s line','bash -c','','','','{}','','{}','{}','','');
INSERT INTO "app" VALUES(2,'staged','','bash -c','bash -c true','','true','{}','','{}','{}','','');
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
    optional_params TEXT NOT NULL DEFAULT '{}'
);
INSERT INTO "batch_job" VALUES(1,'1','LocalScheduler@laptop:/tmp/old-balsam/.balsam/local-scheduler','datascience','none',1,5,'serial','nothing','{}','','/tmp/old-balsam/db/qsubmit/qlaunch1.sh','submitted','',0,1,1778723003826846,NULL,NULL,NULL,'/tmp/old-balsam/db/qsubmit/qlaunch1.out','[]','{}');
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
INSERT INTO "event" VALUES(1,2,1778723001042100,'CREATED','AWAITING_PARENTS','',NULL);
INSERT INTO "event" VALUES(2,3,1778723001044245,'CREATED','AWAITING_PARENTS','',NULL);
INSERT INTO "event" VALUES(3,4,1778723001045527,'CREATED','AWAITING_PARENTS','',NULL);
INSERT INTO "event" VALUES(4,5,1778723001046759,'CREATED','AWAITING_PARENTS','',NULL);
INSERT INTO "event" VALUES(5,7,1778723001053713,'CREATED','AWAITING_PARENTS','',NULL);
INSERT INTO "event" VALUES(6,1,1778723001564797,'CREATED','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(7,1,1778723001564797,'PREPROCESSED','RUNNING','','{"lease":1}');
INSERT INTO "event" VALUES(8,6,1778723001564797,'CREATED','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(9,6,1778723001564797,'PREPROCESSED','RUNNING','','{"lease":1}');
INSERT INTO "event" VALUES(10,9,1778723001583915,'CREATED','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(11,1,1778723001585759,'RUNNING','RUN_DONE','','{"started":1796003001580009}');
INSERT INTO "event" VALUES(12,1,1778723001585759,'RUN_DONE','JOB_FINISHED','',NULL);
INSERT INTO "event" VALUES(13,2,1778723001585951,'AWAITING_PARENTS','READY','',NULL);
INSERT INTO "event" VALUES(14,3,1778723001585951,'AWAITING_PARENTS','READY','',NULL);
INSERT INTO "event" VALUES(15,5,1778723001585951,'AWAITING_PARENTS','READY','',NULL);
INSERT INTO "event" VALUES(16,2,1778723001585951,'READY','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(17,2,1778723001585951,'PREPROCESSED','RUNNING','','{"lease":1}');
INSERT INTO "event" VALUES(18,6,1778723001587846,'RUNNING','RUN_ERROR','nonzero return 3','{"started":1796003001583580,"return_code":3}');
INSERT INTO "event" VALUES(19,6,1778723001587846,'RUN_ERROR','FAILED','',NULL);
INSERT INTO "event" VALUES(20,7,1778723001589387,'AWAITING_PARENTS','FAILED','One or more parent jobs failed','{"parent":6}');
INSERT INTO "event" VALUES(21,9,1778723001589387,'PREPROCESSED','RUNNING','','{"lease":1}');
INSERT INTO "event" VALUES(22,9,1778723001592710,'RUNNING','RUN_DONE','','{"started":1796003001590705}');
INSERT INTO "event" VALUES(23,2,1778723001594367,'RUNNING','RUN_DONE','','{"started":1796003001587920}');
INSERT INTO "event" VALUES(24,2,1778723001594367,'RUN_DONE','JOB_FINISHED','',NULL);
INSERT INTO "event" VALUES(25,9,1778723001595368,'RUN_DONE','POSTPROCESSED','',NULL);
INSERT INTO "event" VALUES(26,9,1778723001595368,'POSTPROCESSED','JOB_FINISHED','',NULL);
INSERT INTO "event" VALUES(27,5,1778723003021428,'READY','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(28,5,1778723003021428,'PREPROCESSED','RUNNING','','{"lease":2}');
INSERT INTO "event" VALUES(29,5,1778723003136434,'RUNNING','RUN_TIMEOUT','Stopped at the end of the launcher: killed by signal 15 (SIGTERM)','{"started":1796003003024457,"return_code":-15}');
INSERT INTO "event" VALUES(30,5,1778723003136434,'RUN_TIMEOUT','RESTART_READY','',NULL);
INSERT INTO "event" VALUES(31,8,1778723003494706,'CREATED','USER_KILLED','',NULL);
INSERT INTO "event" VALUES(32,1,1778723003512707,'JOB_FINISHED','RESTART_READY','User mutated state from Python',NULL);
INSERT INTO "event" VALUES(33,12,1778723003517192,'CREATED','AWAITING_PARENTS','',NULL);
INSERT INTO "event" VALUES(34,10,1778723006518852,'CREATED','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(35,10,1778723006518852,'PREPROCESSED','RUNNING','','{"lease":4}');
INSERT INTO "event" VALUES(36,11,1778723006518852,'CREATED','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(37,11,1778723006518852,'PREPROCESSED','RUNNING','','{"lease":4}');
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
    mpi_flags TEXT NOT NULL DEFAULT ''
);
INSERT INTO "job" VALUES(1,'eb7610fd-abe6-4a31-a02a-56862cb1722e','first','done','it''s "kept"',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{"A": "1=2"}','sh','''echo done > done.txt''','',1,0,0,1,'RESTART_READY',NULL,'{"x": [1, "ü", null]}','{"size": "big", "colour": "red"}','{}',0,0,10,'first/done_eb7610fd',0,1,0,0,1778723001027809,'',0,'',0,'');
INSERT INTO "job" VALUES(2,'07a8c5de-a44a-4b68-8355-045c068a869f','first','child-done','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''cat done.txt''','',1,0,0,1,'JOB_FINISHED',NULL,'{}','{}','{}',0,0,10,'first/child-done_07a8c5de',0,1,0,1,1778723001041714,'',0,'',0,'');
INSERT INTO "job" VALUES(3,'8c1444e4-6014-4563-b5c2-ed564118b26a','later','child-late','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',1,0,0,1,'READY',NULL,'{}','{"size": "small"}','{}',0,0,10,'later/child-late_8c1444e4',NULL,0,0,1,1778723001043924,'',0,'',0,'');
INSERT INTO "job" VALUES(4,'b18498eb-b2a1-4229-9753-d1da2df963fc','later','grandchild-late','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',1,0,0,1,'AWAITING_PARENTS',NULL,'{}','{}','{}',0,0,10,'later/grandchild-late_b18498eb',NULL,0,0,1,1778723001045347,'',0,'',0,'');
INSERT INTO "job" VALUES(5,'2516c5b7-bd99-487b-be6d-e9a8e1b65247','second','child-timed-out','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''test $BALSAM_ATTEMPT -gt 1 || sleep 60''','',1,0,0,1,'RESTART_READY',NULL,'{}','{}','{}',0,0,10,'second/child-timed-out_2516c5b7',-15,1,1,1,1778723001046584,'',0,'',0,'');
INSERT INTO "job" VALUES(6,'bd724c78-79e1-432a-b145-d0784389fc11','first','failed','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''exit 3''','',1,0,0,1,'FAILED',NULL,'{}','{}','{}',0,0,10,'first/failed_bd724c78',3,1,0,0,1778723001052220,'',0,'',0,'');
INSERT INTO "job" VALUES(7,'f4d9f4ec-dd3c-4737-aaf0-cf47e6e8dba8','first','child-failed','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',1,0,0,1,'FAILED',NULL,'{}','{}','{}',0,0,10,'first/child-failed_f4d9f4ec',NULL,0,0,1,1778723001053539,'',0,'',0,'');
INSERT INTO "job" VALUES(8,'7df16f9d-3950-4789-b8c8-002370eaa938','later','killed','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',1,0,0,1,'USER_KILLED',NULL,'{}','{}','{}',0,0,10,'later/killed_7df16f9d',NULL,0,0,0,1778723001055000,'',0,'',0,'');
INSERT INTO "job" VALUES(9,'671a38d0-ca52-471a-b176-2c74faf672d1','first','staged','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','staged','''true''','',1,0,0,1,'JOB_FINISHED',NULL,'{}','{}','{}',0,0,10,'first/staged_671a38d0',0,1,0,0,1778723001060269,'',0,'',0,'');
INSERT INTO "job" VALUES(10,'4999fc7a-0b0c-4c51-b03a-8d6b6f3a2dcb','third','running0','',4,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''test $BALSAM_ATTEMPT -gt 1 || sleep 60''','',1,0,0,1,'RUNNING',NULL,'{}','{}','{}',0,0,10,'third/running0_4999fc7a',NULL,1,0,0,1778723003514345,'',0,'',0,'');
INSERT INTO "job" VALUES(11,'43401e30-a09d-42b8-af75-6bffd39efffa','third','running1','',4,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''test $BALSAM_ATTEMPT -gt 1 || sleep 60''','',1,0,0,1,'RUNNING',NULL,'{}','{}','{}',0,0,10,'third/running1_43401e30',NULL,1,0,0,1778723003515869,'',0,'',0,'');
INSERT INTO "job" VALUES(12,'3cb82f1a-cfc7-4e32-982f-0b3baf15bad6','third','child-running','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',1,0,0,1,'AWAITING_PARENTS',NULL,'{}','{}','{}',0,0,10,'third/child-running_3cb82f1a',NULL,0,0,2,1778723003516907,'',0,'',0,'');
INSERT INTO "job" VALUES(13,'2456b131-7c6d-439d-828b-9db1a81c4d90','third','waiting','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',1,0,0,1,'CREATED',NULL,'{}','{}','{}',0,-1,10,'third/waiting_2456b131',NULL,0,0,0,1778723003518315,'',0,'',0,'');
INSERT INTO "job" VALUES(14,'1ec6f85e-453c-482a-b58f-dedffd4b8f70','later','no-wait','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',0,0,0,1,'CREATED',NULL,'{}','{}','{}',0,0,10,'later/no-wait_1ec6f85e',NULL,0,0,2,1778723003519389,'',0,'',0,'');
INSERT INTO "job" VALUES(15,'1e7c67e4-2312-47aa-a8bc-589394c085c7','','bulk0','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','true','',1,0,0,1,'CREATED',NULL,'{}','{}','{}',0,0,10,'bulk0_1e7c67e4',NULL,0,0,0,1778723003520546,'',0,'',0,'');
INSERT INTO "job" VALUES(16,'4bce7dc7-5bbf-4a97-a80a-6d4f50ba0ed4','','bulk1','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','true','',1,0,0,1,'CREATED',NULL,'{}','{}','{}',0,0,10,'bulk1_4bce7dc7',NULL,0,0,0,1778723003520546,'',0,'',0,'');
INSERT INTO "job" VALUES(17,'e035ccf6-d3b3-43d4-946e-684000f0bf86','','bulk2','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','true','',1,0,0,1,'CREATED',NULL,'{}','{}','{}',0,0,10,'bulk2_e035ccf6',NULL,0,0,0,1778723003520546,'',0,'',0,'');
INSERT INTO "job" VALUES(18,'f17d6dbf-2acb-4e07-9ba2-0b71d0fc7a17','','bulk3','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','true','',1,0,0,1,'CREATED',NULL,'{}','{}','{}',0,0,10,'bulk3_f17d6dbf',NULL,0,0,0,1778723003520546,'',0,'',0,'');
INSERT INTO "job" VALUES(19,'b20e8337-0bf1-475d-8e92-8a9bb5d6ed99','','bulk4','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','true','',1,0,0,1,'CREATED',NULL,'{}','{}','{}',0,0,10,'bulk4_b20e8337',NULL,0,0,0,1778723003520546,'',0,'',0,'');
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
INSERT INTO "lease" VALUES(1,'launcher','laptop','pid:[4026531836]',31610,'113903','',1778723001548505,1778723001596562,1778723002625199,'there is nothing left to do','');
INSERT INTO "lease" VALUES(2,'launcher','laptop','pid:[4026531836]',31753,'114067','',1778723003009679,1778723003010536,1778723003152534,'signal SIGTERM','');
INSERT INTO "lease" VALUES(3,'launcher','laptop','pid:[4026531836]',31898,'114200','1',1778723004769806,1778723004790778,1778723005805577,'there is nothing left to do','');
INSERT INTO "lease" VALUES(4,'launcher','laptop','pid:[4026531836]',32029,'114383','',1778723006505889,1778723006506745,NULL,'','');
CREATE TABLE state_count (state TEXT PRIMARY KEY, jobs INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO "state_count" VALUES('AWAITING_PARENTS',2);
INSERT INTO "state_count" VALUES('CREATED',7);
INSERT INTO "state_count" VALUES('FAILED',2);
INSERT INTO "state_count" VALUES('JOB_FINISHED',2);
INSERT INTO "state_count" VALUES('POSTPROCESSED',0);
INSERT INTO "state_count" VALUES('PREPROCESSED',0);
INSERT INTO "state_count" VALUES('READY',1);
INSERT INTO "state_count" VALUES('RESTART_READY',2);
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
CREATE INDEX job_unprepared ON job (num_nodes, ranks_per_node, node_packing_count, gpus_per_rank, priority DESC, wall_time_minutes DESC) WHERE lease IS NULL AND state IN ('CREATED', 'READY', 'STAGED_IN');
CREATE INDEX job_unprepared_of_workflow ON job (workflow, num_nodes, ranks_per_node, node_packing_count, gpus_per_rank, priority DESC, wall_time_minutes DESC) WHERE lease IS NULL AND state IN ('CREATED', 'READY', 'STAGED_IN');
CREATE INDEX job_runnable ON job (num_nodes, ranks_per_node, node_packing_count, gpus_per_rank, priority DESC, wall_time_minutes DESC) WHERE lease IS NULL AND state IN ('PREPROCESSED', 'RESTART_READY');
CREATE INDEX job_runnable_of_workflow ON job (workflow, num_nodes, ranks_per_node, node_packing_count, gpus_per_rank, priority DESC, wall_time_minutes DESC) WHERE lease IS NULL AND state IN ('PREPROCESSED', 'RESTART_READY');
CREATE INDEX job_unprepared_of_launch ON job (queued_launch_id, num_nodes, ranks_per_node, node_packing_count, gpus_per_rank, priority DESC, wall_time_minutes DESC) WHERE lease IS NULL AND state IN ('CREATED', 'READY', 'STAGED_IN') AND queued_launch_id IS NOT NULL;
CREATE INDEX job_runnable_of_launch ON job (queued_launch_id, num_nodes, ranks_per_node, node_packing_count, gpus_per_rank, priority DESC, wall_time_minutes DESC) WHERE lease IS NULL AND state IN ('PREPROCESSED', 'RESTART_READY') AND queued_launch_id IS NOT NULL;
CREATE INDEX job_unsettled ON job (state) WHERE lease IS NULL AND state IN ('RUN_DONE', 'POSTPROCESSED', 'RUN_ERROR', 'RUN_TIMEOUT');
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
PRAGMA user_version = 4;
