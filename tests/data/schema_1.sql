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
INSERT INTO "batch_job" VALUES(1,'1','LocalScheduler@laptop:/tmp/old-balsam/.balsam/local-scheduler','datascience','none',1,5,'serial','nothing','{}','','/tmp/old-balsam/db/qsubmit/qlaunch1.sh','submitted','',0,1,1778722987217460,NULL,NULL,NULL,'/tmp/old-balsam/db/qsubmit/qlaunch1.out');
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
INSERT INTO "dependency" VALUES(9,11);
INSERT INTO "dependency" VALUES(10,11);
INSERT INTO "dependency" VALUES(9,13);
INSERT INTO "dependency" VALUES(10,13);
CREATE TABLE event (
    id INTEGER PRIMARY KEY,
    job INTEGER NOT NULL,
    time INTEGER NOT NULL,
    from_state TEXT NOT NULL,
    to_state TEXT NOT NULL,
    message TEXT NOT NULL DEFAULT '',
    data TEXT
);
INSERT INTO "event" VALUES(1,2,1778722985253566,'CREATED','AWAITING_PARENTS','',NULL);
INSERT INTO "event" VALUES(2,3,1778722985255158,'CREATED','AWAITING_PARENTS','',NULL);
INSERT INTO "event" VALUES(3,4,1778722985256994,'CREATED','AWAITING_PARENTS','',NULL);
INSERT INTO "event" VALUES(4,5,1778722985258593,'CREATED','AWAITING_PARENTS','',NULL);
INSERT INTO "event" VALUES(5,7,1778722985260701,'CREATED','AWAITING_PARENTS','',NULL);
INSERT INTO "event" VALUES(6,1,1778722985456909,'CREATED','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(7,1,1778722985456909,'PREPROCESSED','RUNNING','','{"lease":1}');
INSERT INTO "event" VALUES(8,6,1778722985456909,'CREATED','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(9,6,1778722985456909,'PREPROCESSED','RUNNING','','{"lease":1}');
INSERT INTO "event" VALUES(10,1,1778722985466366,'RUNNING','RUN_DONE','','{"started":1796002985464187}');
INSERT INTO "event" VALUES(11,1,1778722985466366,'RUN_DONE','JOB_FINISHED','',NULL);
INSERT INTO "event" VALUES(12,6,1778722985466372,'RUNNING','RUN_ERROR','nonzero return 3','{"started":1796002985464388,"return_code":3}');
INSERT INTO "event" VALUES(13,6,1778722985466372,'RUN_ERROR','FAILED','',NULL);
INSERT INTO "event" VALUES(14,2,1778722985466640,'AWAITING_PARENTS','READY','',NULL);
INSERT INTO "event" VALUES(15,3,1778722985466640,'AWAITING_PARENTS','READY','',NULL);
INSERT INTO "event" VALUES(16,5,1778722985466640,'AWAITING_PARENTS','READY','',NULL);
INSERT INTO "event" VALUES(17,7,1778722985466640,'AWAITING_PARENTS','FAILED','One or more parent jobs failed','{"parent":6}');
INSERT INTO "event" VALUES(18,2,1778722985466640,'READY','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(19,2,1778722985466640,'PREPROCESSED','RUNNING','','{"lease":1}');
INSERT INTO "event" VALUES(20,2,1778722985480462,'RUNNING','RUN_ERROR','nonzero return 1: cat: done.txt: No such file or directory','{"started":1796002985472381,"return_code":1}');
INSERT INTO "event" VALUES(21,2,1778722985480462,'RUN_ERROR','FAILED','',NULL);
INSERT INTO "event" VALUES(22,5,1778722986862632,'READY','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(23,5,1778722986862632,'PREPROCESSED','RUNNING','','{"lease":2}');
INSERT INTO "event" VALUES(24,5,1778722986901909,'RUNNING','RUN_TIMEOUT','killed by signal 15 (SIGTERM)','{"started":1796002986864652,"return_code":-15}');
INSERT INTO "event" VALUES(25,5,1778722986901909,'RUN_TIMEOUT','RESTART_READY','',NULL);
INSERT INTO "event" VALUES(26,8,1778722987078363,'CREATED','USER_KILLED','',NULL);
INSERT INTO "event" VALUES(27,1,1778722987081779,'JOB_FINISHED','RESTART_READY','User mutated state from Python',NULL);
INSERT INTO "event" VALUES(28,11,1778722987085983,'CREATED','AWAITING_PARENTS','',NULL);
INSERT INTO "event" VALUES(29,9,1778722988856696,'CREATED','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(30,9,1778722988856696,'PREPROCESSED','RUNNING','','{"lease":4}');
INSERT INTO "event" VALUES(31,10,1778722988856696,'CREATED','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(32,10,1778722988856696,'PREPROCESSED','RUNNING','','{"lease":4}');
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
    origin TEXT NOT NULL DEFAULT ''
);
INSERT INTO "job" VALUES(1,'06500c76-1587-4055-99dd-82b04839c738','first','done','it''s "kept"',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{"A": "1=2"}','sh','''echo done > done.txt''','',1,0,0,1,'RESTART_READY',NULL,'{"x": [1, "ü", null]}','{"size": "big", "colour": "red"}','{}',0,0,10,'first/done_06500c76',0,1,0,0,1778722985241870,'');
INSERT INTO "job" VALUES(2,'9a597088-e539-433a-968e-f1e15087cf53','first','child-done','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''cat done.txt''','',1,0,0,1,'FAILED',NULL,'{}','{}','{}',0,0,10,'first/child-done_9a597088',1,1,0,1,1778722985253258,'');
INSERT INTO "job" VALUES(3,'8ae3e2e1-4b2c-471f-92f8-3d54802892cc','later','child-late','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',1,0,0,1,'READY',NULL,'{}','{"size": "small"}','{}',0,0,10,'later/child-late_8ae3e2e1',NULL,0,0,1,1778722985254912,'');
INSERT INTO "job" VALUES(4,'10efaa8c-a6d6-45eb-bf4c-e6b957ac6e6c','later','grandchild-late','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',1,0,0,1,'AWAITING_PARENTS',NULL,'{}','{}','{}',0,0,10,'later/grandchild-late_10efaa8c',NULL,0,0,1,1778722985256745,'');
INSERT INTO "job" VALUES(5,'c6335e65-c597-49e8-b56a-7a6430bf560b','second','child-timed-out','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''test $BALSAM_ATTEMPT -gt 1 || sleep 60''','',1,0,0,1,'RESTART_READY',NULL,'{}','{}','{}',0,0,10,'second/child-timed-out_c6335e65',-15,1,1,1,1778722985258429,'');
INSERT INTO "job" VALUES(6,'bc1c6386-4872-4ae0-82c1-718ce3493e46','first','failed','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''exit 3''','',1,0,0,1,'FAILED',NULL,'{}','{}','{}',0,0,10,'first/failed_bc1c6386',3,1,0,0,1778722985259603,'');
INSERT INTO "job" VALUES(7,'9a0f2dd2-57b2-4534-b7f1-72fd9b275489','first','child-failed','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',1,0,0,1,'FAILED',NULL,'{}','{}','{}',0,0,10,'first/child-failed_9a0f2dd2',NULL,0,0,1,1778722985260564,'');
INSERT INTO "job" VALUES(8,'eda5dfc0-d573-4956-ba1a-9c3ca93186eb','later','killed','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',1,0,0,1,'USER_KILLED',NULL,'{}','{}','{}',0,0,10,'later/killed_eda5dfc0',NULL,0,0,0,1778722985261829,'');
INSERT INTO "job" VALUES(9,'8edda972-26e5-47c7-93a9-e33767dd97a6','third','running0','',4,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''test $BALSAM_ATTEMPT -gt 1 || sleep 60''','',1,0,0,1,'RUNNING',NULL,'{}','{}','{}',0,0,10,'third/running0_8edda972',NULL,1,0,0,1778722987083320,'');
INSERT INTO "job" VALUES(10,'4c3f4266-ee04-4248-8388-5b93bddec58a','third','running1','',4,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''test $BALSAM_ATTEMPT -gt 1 || sleep 60''','',1,0,0,1,'RUNNING',NULL,'{}','{}','{}',0,0,10,'third/running1_4c3f4266',NULL,1,0,0,1778722987084801,'');
INSERT INTO "job" VALUES(11,'effb1c5d-95c5-4027-959e-3860f9c9ee33','third','child-running','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',1,0,0,1,'AWAITING_PARENTS',NULL,'{}','{}','{}',0,0,10,'third/child-running_effb1c5d',NULL,0,0,2,1778722987085708,'');
INSERT INTO "job" VALUES(12,'980baff8-69e7-4db6-9009-59f6715f16d1','third','waiting','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',1,0,0,1,'CREATED',NULL,'{}','{}','{}',0,-1,10,'third/waiting_980baff8',NULL,0,0,0,1778722987087254,'');
INSERT INTO "job" VALUES(13,'5ccb2a76-ce7d-4393-bd12-b4a5ba678eff','later','no-wait','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',0,0,0,1,'CREATED',NULL,'{}','{}','{}',0,0,10,'later/no-wait_5ccb2a76',NULL,0,0,2,1778722987088354,'');
INSERT INTO "job" VALUES(14,'e468052b-3a3e-4697-a163-c74f6ff29025','','bulk0','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','true','',1,0,0,1,'CREATED',NULL,'{}','{}','{}',0,0,10,'bulk0_e468052b',NULL,0,0,0,1778722987089290,'');
INSERT INTO "job" VALUES(15,'09118a48-1f51-4680-be8b-ef6874989086','','bulk1','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','true','',1,0,0,1,'CREATED',NULL,'{}','{}','{}',0,0,10,'bulk1_09118a48',NULL,0,0,0,1778722987089290,'');
INSERT INTO "job" VALUES(16,'2fe92d3b-d061-4f68-a330-a59c40c38c28','','bulk2','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','true','',1,0,0,1,'CREATED',NULL,'{}','{}','{}',0,0,10,'bulk2_2fe92d3b',NULL,0,0,0,1778722987089290,'');
INSERT INTO "job" VALUES(17,'2ebf98e8-0920-40ce-a8d5-f9fbee7f0243','','bulk3','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','true','',1,0,0,1,'CREATED',NULL,'{}','{}','{}',0,0,10,'bulk3_2ebf98e8',NULL,0,0,0,1778722987089290,'');
INSERT INTO "job" VALUES(18,'041489e3-f062-48dd-ba0d-a6e0d39f18c6','','bulk4','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','true','',1,0,0,1,'CREATED',NULL,'{}','{}','{}',0,0,10,'bulk4_041489e3',NULL,0,0,0,1778722987089290,'');
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
INSERT INTO "lease" VALUES(1,'launcher','laptop','pid:[4026531836]',29806,'112323','',1778722985447623,1778722985447623,1778722986488872,'there is nothing left to do');
INSERT INTO "lease" VALUES(2,'launcher','laptop','pid:[4026531836]',30030,'112454','',1778722986857684,1778722986857684,1778722986908626,'signal SIGTERM');
INSERT INTO "lease" VALUES(3,'launcher','laptop','pid:[4026531836]',30096,'112526','1',1778722987640763,1778722987640763,1778722988661825,'there is nothing left to do');
INSERT INTO "lease" VALUES(4,'launcher','laptop','pid:[4026531836]',30198,'112669','',1778722988852048,1778722988852048,NULL,'');
CREATE TABLE state_count (state TEXT PRIMARY KEY, jobs INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO "state_count" VALUES('AWAITING_PARENTS',2);
INSERT INTO "state_count" VALUES('CREATED',7);
INSERT INTO "state_count" VALUES('FAILED',3);
INSERT INTO "state_count" VALUES('JOB_FINISHED',0);
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
CREATE INDEX job_startable ON job (num_nodes, ranks_per_node, node_packing_count, gpus_per_rank, priority DESC, wall_time_minutes DESC) WHERE lease IS NULL AND state IN ('CREATED', 'READY', 'STAGED_IN', 'PREPROCESSED', 'RESTART_READY');
CREATE INDEX job_startable_of_workflow
    ON job (workflow, num_nodes, ranks_per_node, node_packing_count, gpus_per_rank, priority DESC, wall_time_minutes DESC) WHERE lease IS NULL AND state IN ('CREATED', 'READY', 'STAGED_IN', 'PREPROCESSED', 'RESTART_READY');
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
INSERT INTO "sqlite_sequence" VALUES('job',18);
INSERT INTO "sqlite_sequence" VALUES('lease',4);
INSERT INTO "sqlite_sequence" VALUES('batch_job',1);
COMMIT;
PRAGMA user_version = 1;
