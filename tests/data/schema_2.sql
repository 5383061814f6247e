BEGIN TRANSACTION;
CREATE TABLE app (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL DEFAULT '',
    description TEXT NOT NULL DEFAULT '',
    executable TEXT NOT NULL DEFAULT '',
    preprocess TEXT NOT NULL DEFAULT '',
    envscript TEXT NOT NULL DEFAULT '',
    postprocess TEXT NOT NULL DEFAULT '',
    data TEXT NOT NULL DEFAULT '{}'
);
INSERT INTO "app" VALUES(1,'sh','a shell''s line','bash -c','','','','{}');
INSERT INTO "app" VALUES(2,'staged','','bash -c','bash -c true','','true','{}');
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
    log TEXT NOT NULL DEFAULT ''
);
INSERT INTO "batch_job" VALUES(1,'1','LocalScheduler@laptop:/tmp/old-balsam/.balsam/local-scheduler','datascience','none',1,5,'serial','nothing','{}','','/tmp/old-balsam/db/qsubmit/qlaunch1.sh','submitted','',0,1,1778722991570046,NULL,NULL,NULL,'/tmp/old-balsam/db/qsubmit/qlaunch1.out');
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
INSERT INTO "event" VALUES(1,2,1778722989663294,'CREATED','AWAITING_PARENTS','',NULL);
INSERT INTO "event" VALUES(2,3,1778722989665437,'CREATED','AWAITING_PARENTS','',NULL);
INSERT INTO "event" VALUES(3,4,1778722989666809,'CREATED','AWAITING_PARENTS','',NULL);
INSERT INTO "event" VALUES(4,5,1778722989668330,'CREATED','AWAITING_PARENTS','',NULL);
INSERT INTO "event" VALUES(5,7,1778722989670646,'CREATED','AWAITING_PARENTS','',NULL);
INSERT INTO "event" VALUES(6,1,1778722989832914,'CREATED','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(7,1,1778722989832914,'PREPROCESSED','RUNNING','','{"lease":1}');
INSERT INTO "event" VALUES(8,6,1778722989832914,'CREATED','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(9,6,1778722989832914,'PREPROCESSED','RUNNING','','{"lease":1}');
INSERT INTO "event" VALUES(10,9,1778722989838770,'CREATED','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(11,6,1778722989841048,'RUNNING','RUN_ERROR','nonzero return 3','{"started":1796002989838508,"return_code":3}');
INSERT INTO "event" VALUES(12,6,1778722989841048,'RUN_ERROR','FAILED','',NULL);
INSERT INTO "event" VALUES(13,7,1778722989843377,'AWAITING_PARENTS','FAILED','One or more parent jobs failed','{"parent":6}');
INSERT INTO "event" VALUES(14,9,1778722989843377,'PREPROCESSED','RUNNING','','{"lease":1}');
INSERT INTO "event" VALUES(15,1,1778722989846552,'RUNNING','RUN_DONE','','{"started":1796002989838402}');
INSERT INTO "event" VALUES(16,1,1778722989846552,'RUN_DONE','JOB_FINISHED','',NULL);
INSERT INTO "event" VALUES(17,2,1778722989846614,'AWAITING_PARENTS','READY','',NULL);
INSERT INTO "event" VALUES(18,3,1778722989846614,'AWAITING_PARENTS','READY','',NULL);
INSERT INTO "event" VALUES(19,5,1778722989846614,'AWAITING_PARENTS','READY','',NULL);
INSERT INTO "event" VALUES(20,2,1778722989846614,'READY','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(21,2,1778722989846614,'PREPROCESSED','RUNNING','','{"lease":1}');
INSERT INTO "event" VALUES(22,9,1778722989858393,'RUNNING','RUN_DONE','','{"started":1796002989846409}');
INSERT INTO "event" VALUES(23,2,1778722989861343,'RUNNING','RUN_DONE','','{"started":1796002989851909}');
INSERT INTO "event" VALUES(24,2,1778722989861343,'RUN_DONE','JOB_FINISHED','',NULL);
INSERT INTO "event" VALUES(25,9,1778722989863596,'RUN_DONE','POSTPROCESSED','',NULL);
INSERT INTO "event" VALUES(26,9,1778722989863596,'POSTPROCESSED','JOB_FINISHED','',NULL);
INSERT INTO "event" VALUES(27,5,1778722991172218,'READY','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(28,5,1778722991172218,'PREPROCESSED','RUNNING','','{"lease":2}');
INSERT INTO "event" VALUES(29,5,1778722991208009,'RUNNING','RUN_TIMEOUT','Stopped at the end of the launcher: killed by signal 15 (SIGTERM)','{"started":1796002991180250,"return_code":-15}');
INSERT INTO "event" VALUES(30,5,1778722991208009,'RUN_TIMEOUT','RESTART_READY','',NULL);
INSERT INTO "event" VALUES(31,8,1778722991418249,'CREATED','USER_KILLED','',NULL);
INSERT INTO "event" VALUES(32,1,1778722991427221,'JOB_FINISHED','RESTART_READY','User mutated state from Python',NULL);
INSERT INTO "event" VALUES(33,12,1778722991431194,'CREATED','AWAITING_PARENTS','',NULL);
INSERT INTO "event" VALUES(34,10,1778722993153088,'CREATED','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(35,10,1778722993153088,'PREPROCESSED','RUNNING','','{"lease":4}');
INSERT INTO "event" VALUES(36,11,1778722993153088,'CREATED','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(37,11,1778722993153088,'PREPROCESSED','RUNNING','','{"lease":4}');
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
    retries INTEGER NOT NULL DEFAULT 0
);
INSERT INTO "job" VALUES(1,'1811a7e4-d95b-43c4-af4a-c89536af3a25','first','done','it''s "kept"',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{"A": "1=2"}','sh','''echo done > done.txt''','',1,0,0,1,'RESTART_READY',NULL,'{"x": [1, "ü", null]}','{"size": "big", "colour": "red"}','{}',0,0,10,'first/done_1811a7e4',0,1,0,0,1778722989660258,'',0,'',0);
INSERT INTO "job" VALUES(2,'97a3551a-2850-4cf8-92e6-075deea9a9b3','first','child-done','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''cat done.txt''','',1,0,0,1,'JOB_FINISHED',NULL,'{}','{}','{}',0,0,10,'first/child-done_97a3551a',0,1,0,1,1778722989662985,'',0,'',0);
INSERT INTO "job" VALUES(3,'e3495201-d937-449a-81e3-6a3012337c5d','later','child-late','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',1,0,0,1,'READY',NULL,'{}','{"size": "small"}','{}',0,0,10,'later/child-late_e3495201',NULL,0,0,1,1778722989665178,'',0,'',0);
INSERT INTO "job" VALUES(4,'6c47f120-cb17-42a5-918c-8dc4e584839a','later','grandchild-late','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',1,0,0,1,'AWAITING_PARENTS',NULL,'{}','{}','{}',0,0,10,'later/grandchild-late_6c47f120',NULL,0,0,1,1778722989666653,'',0,'',0);
INSERT INTO "job" VALUES(5,'5dae250d-a2cc-4a51-94f5-ad4a0f4d5841','second','child-timed-out','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''test $BALSAM_ATTEMPT -gt 1 || sleep 60''','',1,0,0,1,'RESTART_READY',NULL,'{}','{}','{}',0,0,10,'second/child-timed-out_5dae250d',-15,1,1,1,1778722989668151,'',0,'',0);
INSERT INTO "job" VALUES(6,'03f0b47f-fb9e-4860-b82f-84b91dad919a','first','failed','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''exit 3''','',1,0,0,1,'FAILED',NULL,'{}','{}','{}',0,0,10,'first/failed_03f0b47f',3,1,0,0,1778722989669312,'',0,'',0);
INSERT INTO "job" VALUES(7,'1f8d9c84-e80a-4805-bcac-673d135953ac','first','child-failed','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',1,0,0,1,'FAILED',NULL,'{}','{}','{}',0,0,10,'first/child-failed_1f8d9c84',NULL,0,0,1,1778722989670441,'',0,'',0);
INSERT INTO "job" VALUES(8,'ce8ca221-dabd-4b68-baf3-61da2fd23c22','later','killed','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',1,0,0,1,'USER_KILLED',NULL,'{}','{}','{}',0,0,10,'later/killed_ce8ca221',NULL,0,0,0,1778722989671668,'',0,'',0);
INSERT INTO "job" VALUES(9,'dd64d81f-f730-4857-b705-760cdf9bc27d','first','staged','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','staged','''true''','',1,0,0,1,'JOB_FINISHED',NULL,'{}','{}','{}',0,0,10,'first/staged_dd64d81f',0,1,0,0,1778722989672771,'',0,'',0);
INSERT INTO "job" VALUES(10,'5c6d105f-b976-4064-a56e-175a65f21613','third','running0','',4,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''test $BALSAM_ATTEMPT -gt 1 || sleep 60''','',1,0,0,1,'RUNNING',NULL,'{}','{}','{}',0,0,10,'third/running0_5c6d105f',NULL,1,0,0,1778722991429051,'',0,'',0);
INSERT INTO "job" VALUES(11,'c6c64d08-8522-4984-8d0a-bb187f31e5f2','third','running1','',4,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''test $BALSAM_ATTEMPT -gt 1 || sleep 60''','',1,0,0,1,'RUNNING',NULL,'{}','{}','{}',0,0,10,'third/running1_c6c64d08',NULL,1,0,0,1778722991430103,'',0,'',0);
INSERT INTO "job" VALUES(12,'085037dd-0e34-452e-ad02-4d74840dfefa','third','child-running','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',1,0,0,1,'AWAITING_PARENTS',NULL,'{}','{}','{}',0,0,10,'third/child-running_085037dd',NULL,0,0,2,1778722991431057,'',0,'',0);
INSERT INTO "job" VALUES(13,'00cbfa4f-522d-4275-bdc3-24b03a8e33d3','third','waiting','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',1,0,0,1,'CREATED',NULL,'{}','{}','{}',0,-1,10,'third/waiting_00cbfa4f',NULL,0,0,0,1778722991432602,'',0,'',0);
INSERT INTO "job" VALUES(14,'a3ef58f6-6595-48ee-9467-976f1edcbd80','later','no-wait','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',0,0,0,1,'CREATED',NULL,'{}','{}','{}',0,0,10,'later/no-wait_a3ef58f6',NULL,0,0,2,1778722991433639,'',0,'',0);
INSERT INTO "job" VALUES(15,'37bb8712-4d67-4e57-89f6-a1e1b9b0cdd4','','bulk0','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','true','',1,0,0,1,'CREATED',NULL,'{}','{}','{}',0,0,10,'bulk0_37bb8712',NULL,0,0,0,1778722991434639,'',0,'',0);
INSERT INTO "job" VALUES(16,'7cc7ce24-d3ed-4ef6-812e-24f88d3c96ab','','bulk1','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','true','',1,0,0,1,'CREATED',NULL,'{}','{}','{}',0,0,10,'bulk1_7cc7ce24',NULL,0,0,0,1778722991434639,'',0,'',0);
INSERT INTO "job" VALUES(17,'ab3dd3db-13cb-4126-88ea-6199e8079e20','','bulk2','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','true','',1,0,0,1,'CREATED',NULL,'{}','{}','{}',0,0,10,'bulk2_ab3dd3db',NULL,0,0,0,1778722991434639,'',0,'',0);
INSERT INTO "job" VALUES(18,'ab17dadd-829f-42a8-ab33-9163f54dc6a2','','bulk3','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','true','',1,0,0,1,'CREATED',NULL,'{}','{}','{}',0,0,10,'bulk3_ab17dadd',NULL,0,0,0,1778722991434639,'',0,'',0);
INSERT INTO "job" VALUES(19,'6cba21ce-329a-4feb-a42e-d1b15a2d3fda','','bulk4','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','true','',1,0,0,1,'CREATED',NULL,'{}','{}','{}',0,0,10,'bulk4_6cba21ce',NULL,0,0,0,1778722991434639,'',0,'',0);
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
    end_reason TEXT NOT NULL DEFAULT ''
);
INSERT INTO "lease" VALUES(1,'launcher','laptop','pid:[4026531836]',30338,'112764','',1778722989828033,1778722989828033,1778722990893099,'there is nothing left to do');
INSERT INTO "lease" VALUES(2,'launcher','laptop','pid:[4026531836]',30434,'112895','',1778722991162546,1778722991162546,1778722991235174,'signal SIGTERM');
INSERT INTO "lease" VALUES(3,'launcher','laptop','pid:[4026531836]',30495,'112961','1',1778722991869952,1778722991869952,1778722992884909,'there is nothing left to do');
INSERT INTO "lease" VALUES(4,'launcher','laptop','pid:[4026531836]',30600,'113093','',1778722993146948,1778722993146948,NULL,'');
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
CREATE VIEW history AS
    SELECT id AS job, 0 AS id, created AS time, '' AS from_state, 'CREATED' AS to_state, origin AS message, NULL AS data
    FROM job
    UNION ALL SELECT job, id, time, from_state, to_state, message, data FROM event;
CREATE UNIQUE INDEX job_short_id ON job (substr(job_id, 1, 8));
CREATE INDEX job_unprepared ON job (num_nodes, ranks_per_node, node_packing_count, gpus_per_rank, priority DESC, wall_time_minutes DESC) WHERE lease IS NULL AND state IN ('CREATED', 'READY', 'STAGED_IN');
CREATE INDEX job_unprepared_of_workflow ON job (workflow, num_nodes, ranks_per_node, node_packing_count, gpus_per_rank, priority DESC, wall_time_minutes DESC) WHERE lease IS NULL AND state IN ('CREATED', 'READY', 'STAGED_IN');
CREATE INDEX job_runnable ON job (num_nodes, ranks_per_node, node_packing_count, gpus_per_rank, priority DESC, wall_time_minutes DESC) WHERE lease IS NULL AND state IN ('PREPROCESSED', 'RESTART_READY');
CREATE INDEX job_runnable_of_workflow ON job (workflow, num_nodes, ranks_per_node, node_packing_count, gpus_per_rank, priority DESC, wall_time_minutes DESC) WHERE lease IS NULL AND state IN ('PREPROCESSED', 'RESTART_READY');
CREATE INDEX job_unsettled ON job (state) WHERE lease IS NULL AND state IN ('RUN_DONE', 'POSTPROCESSED', 'RUN_ERROR', 'RUN_TIMEOUT');
CREATE INDEX job_lease ON job (lease) WHERE lease IS NOT NULL;
CREATE INDEX job_state ON job (state);
CREATE INDEX job_workflow ON job (workflow);
CREATE INDEX job_queued_launch ON job (queued_launch_id) WHERE queued_launch_id IS NOT NULL;
CREATE INDEX job_tagged ON job (id) WHERE tags <> '{}';
CREATE UNIQUE INDEX app_name ON app (name);
CREATE INDEX dependency_child ON dependency (child, parent);
CREATE INDEX event_job ON event (job);
CREATE INDEX lease_open ON lease (id) WHERE closed IS NULL;
CREATE INDEX batch_job_scheduler_id ON batch_job (scheduler_id);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('app',2);
INSERT INTO "sqlite_sequence" VALUES('job',19);
INSERT INTO "sqlite_sequence" VALUES('lease',4);
INSERT INTO "sqlite_sequence" VALUES('batch_job',1);
COMMIT;
PRAGMA user_version = 2;
