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
INSERT INTO "batch_job" VALUES(1,'1','LocalScheduler@laptop:/tmp/old-balsam/.balsam/local-scheduler','datascience','none',1,5,'serial','nothing','{}','','/tmp/old-balsam/db/qsubmit/qlaunch1.sh','submitted','',0,1,1778722997351329,NULL,NULL,NULL,'/tmp/old-balsam/db/qsubmit/qlaunch1.out');
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
INSERT INTO "event" VALUES(1,2,1778722994541649,'CREATED','AWAITING_PARENTS','',NULL);
INSERT INTO "event" VALUES(2,3,1778722994544637,'CREATED','AWAITING_PARENTS','',NULL);
INSERT INTO "event" VALUES(3,4,1778722994546077,'CREATED','AWAITING_PARENTS','',NULL);
INSERT INTO "event" VALUES(4,5,1778722994547398,'CREATED','AWAITING_PARENTS','',NULL);
INSERT INTO "event" VALUES(5,7,1778722994553204,'CREATED','AWAITING_PARENTS','',NULL);
INSERT INTO "event" VALUES(6,1,1778722994864426,'CREATED','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(7,1,1778722994864426,'PREPROCESSED','RUNNING','','{"lease":1}');
INSERT INTO "event" VALUES(8,6,1778722994864426,'CREATED','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(9,6,1778722994864426,'PREPROCESSED','RUNNING','','{"lease":1}');
INSERT INTO "event" VALUES(10,1,1778722994874284,'RUNNING','RUN_DONE','','{"started":1796002994869250}');
INSERT INTO "event" VALUES(11,1,1778722994874284,'RUN_DONE','JOB_FINISHED','',NULL);
INSERT INTO "event" VALUES(12,2,1778722994874398,'AWAITING_PARENTS','READY','',NULL);
INSERT INTO "event" VALUES(13,3,1778722994874398,'AWAITING_PARENTS','READY','',NULL);
INSERT INTO "event" VALUES(14,5,1778722994874398,'AWAITING_PARENTS','READY','',NULL);
INSERT INTO "event" VALUES(15,2,1778722994874398,'READY','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(16,2,1778722994874398,'PREPROCESSED','RUNNING','','{"lease":1}');
INSERT INTO "event" VALUES(17,6,1778722994881083,'RUNNING','RUN_ERROR','nonzero return 3','{"started":1796002994869797,"return_code":3}');
INSERT INTO "event" VALUES(18,6,1778722994881083,'RUN_ERROR','FAILED','',NULL);
INSERT INTO "event" VALUES(19,7,1778722994881589,'AWAITING_PARENTS','FAILED','One or more parent jobs failed','{"parent":6}');
INSERT INTO "event" VALUES(20,9,1778722994881589,'CREATED','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(21,9,1778722994881589,'PREPROCESSED','RUNNING','','{"lease":1}');
INSERT INTO "event" VALUES(22,2,1778722994891734,'RUNNING','RUN_DONE','','{"started":1796002994880624}');
INSERT INTO "event" VALUES(23,2,1778722994891734,'RUN_DONE','JOB_FINISHED','',NULL);
INSERT INTO "event" VALUES(24,9,1778722994895744,'RUNNING','RUN_DONE','','{"started":1796002994891549}');
INSERT INTO "event" VALUES(25,9,1778722994898135,'RUN_DONE','POSTPROCESSED','',NULL);
INSERT INTO "event" VALUES(26,9,1778722994898135,'POSTPROCESSED','JOB_FINISHED','',NULL);
INSERT INTO "event" VALUES(27,5,1778722996465332,'READY','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(28,5,1778722996465332,'PREPROCESSED','RUNNING','','{"lease":2}');
INSERT INTO "event" VALUES(29,5,1778722996503176,'RUNNING','RUN_TIMEOUT','Stopped at the end of the launcher: killed by signal 15 (SIGTERM)','{"started":1796002996474602,"return_code":-15}');
INSERT INTO "event" VALUES(30,5,1778722996503176,'RUN_TIMEOUT','RESTART_READY','',NULL);
INSERT INTO "event" VALUES(31,8,1778722996882350,'CREATED','USER_KILLED','',NULL);
INSERT INTO "event" VALUES(32,1,1778722996924932,'JOB_FINISHED','RESTART_READY','User mutated state from Python',NULL);
INSERT INTO "event" VALUES(33,12,1778722996938474,'CREATED','AWAITING_PARENTS','',NULL);
INSERT INTO "event" VALUES(34,10,1778723000011487,'CREATED','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(35,10,1778723000011487,'PREPROCESSED','RUNNING','','{"lease":4}');
INSERT INTO "event" VALUES(36,11,1778723000011487,'CREATED','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(37,11,1778723000011487,'PREPROCESSED','RUNNING','','{"lease":4}');
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
INSERT INTO "job" VALUES(1,'5b71ea42-2070-4aa7-af08-6ccc6a2b6fda','first','done','it''s "kept"',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{"A": "1=2"}','sh','''echo done > done.txt''','',1,0,0,1,'RESTART_READY',NULL,'{"x": [1, "ü", null]}','{"size": "big", "colour": "red"}','{}',0,0,10,'first/done_5b71ea42',0,1,0,0,1778722994534705,'',0,'',0,'');
INSERT INTO "job" VALUES(2,'38860e18-2705-4763-a3ce-65cf74fe4c85','first','child-done','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''cat done.txt''','',1,0,0,1,'JOB_FINISHED',NULL,'{}','{}','{}',0,0,10,'first/child-done_38860e18',0,1,0,1,1778722994541272,'',0,'',0,'');
INSERT INTO "job" VALUES(3,'64ed5a88-8478-44c3-8d41-17a24623b843','later','child-late','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',1,0,0,1,'READY',NULL,'{}','{"size": "small"}','{}',0,0,10,'later/child-late_64ed5a88',NULL,0,0,1,1778722994544376,'',0,'',0,'');
INSERT INTO "job" VALUES(4,'0002b9bc-0f13-4da4-bfba-07e653008fe4','later','grandchild-late','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',1,0,0,1,'AWAITING_PARENTS',NULL,'{}','{}','{}',0,0,10,'later/grandchild-late_0002b9bc',NULL,0,0,1,1778722994545930,'',0,'',0,'');
INSERT INTO "job" VALUES(5,'69520873-0117-46bc-b3cd-5c3bb7d89441','second','child-timed-out','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''test $BALSAM_ATTEMPT -gt 1 || sleep 60''','',1,0,0,1,'RESTART_READY',NULL,'{}','{}','{}',0,0,10,'second/child-timed-out_69520873',-15,1,1,1,1778722994547244,'',0,'',0,'');
INSERT INTO "job" VALUES(6,'3032bb25-a899-4980-a0a0-3d8a79577b50','first','failed','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''exit 3''','',1,0,0,1,'FAILED',NULL,'{}','{}','{}',0,0,10,'first/failed_3032bb25',3,1,0,0,1778722994551780,'',0,'',0,'');
INSERT INTO "job" VALUES(7,'90b10895-c140-4df3-af90-04980ea1f0c2','first','child-failed','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',1,0,0,1,'FAILED',NULL,'{}','{}','{}',0,0,10,'first/child-failed_90b10895',NULL,0,0,1,1778722994553045,'',0,'',0,'');
INSERT INTO "job" VALUES(8,'61bdfd8a-7f65-4550-8ef4-411009764c0a','later','killed','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',1,0,0,1,'USER_KILLED',NULL,'{}','{}','{}',0,0,10,'later/killed_61bdfd8a',NULL,0,0,0,1778722994554614,'',0,'',0,'');
INSERT INTO "job" VALUES(9,'50127974-d5e3-4281-8d9d-4fa27e6d7dce','first','staged','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','staged','''true''','',1,0,0,1,'JOB_FINISHED',NULL,'{}','{}','{}',0,0,10,'first/staged_50127974',0,1,0,0,1778722994561023,'',0,'',0,'');
INSERT INTO "job" VALUES(10,'d8b1738e-a82d-4eb1-8403-dbe24ceab7e0','third','running0','',4,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''test $BALSAM_ATTEMPT -gt 1 || sleep 60''','',1,0,0,1,'RUNNING',NULL,'{}','{}','{}',0,0,10,'third/running0_d8b1738e',NULL,1,0,0,1778722996930652,'',0,'',0,'');
INSERT INTO "job" VALUES(11,'ebe19296-ea80-4a5f-b06f-2d98bdd315fc','third','running1','',4,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''test $BALSAM_ATTEMPT -gt 1 || sleep 60''','',1,0,0,1,'RUNNING',NULL,'{}','{}','{}',0,0,10,'third/running1_ebe19296',NULL,1,0,0,1778722996937075,'',0,'',0,'');
INSERT INTO "job" VALUES(12,'de09da7a-6da7-49e7-a22c-0f04cf73860a','third','child-running','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',1,0,0,1,'AWAITING_PARENTS',NULL,'{}','{}','{}',0,0,10,'third/child-running_de09da7a',NULL,0,0,2,1778722996938299,'',0,'',0,'');
INSERT INTO "job" VALUES(13,'0bd2686e-513a-4027-90a9-5ec86effb265','third','waiting','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',1,0,0,1,'CREATED',NULL,'{}','{}','{}',0,-1,10,'third/waiting_0bd2686e',NULL,0,0,0,1778722996949049,'',0,'',0,'');
INSERT INTO "job" VALUES(14,'71813693-a103-4c41-886b-2097ad9417da','later','no-wait','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',0,0,0,1,'CREATED',NULL,'{}','{}','{}',0,0,10,'later/no-wait_71813693',NULL,0,0,2,1778722996956297,'',0,'',0,'');
INSERT INTO "job" VALUES(15,'f1ffa3c4-102e-470a-82de-3894632a9c56','','bulk0','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','true','',1,0,0,1,'CREATED',NULL,'{}','{}','{}',0,0,10,'bulk0_f1ffa3c4',NULL,0,0,0,1778722996957545,'',0,'',0,'');
INSERT INTO "job" VALUES(16,'930cc377-4f44-458b-be2d-7c07887e105d','','bulk1','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','true','',1,0,0,1,'CREATED',NULL,'{}','{}','{}',0,0,10,'bulk1_930cc377',NULL,0,0,0,1778722996957545,'',0,'',0,'');
INSERT INTO "job" VALUES(17,'27f186ca-e7ec-4392-b721-8a8ab2ae1454','','bulk2','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','true','',1,0,0,1,'CREATED',NULL,'{}','{}','{}',0,0,10,'bulk2_27f186ca',NULL,0,0,0,1778722996957545,'',0,'',0,'');
INSERT INTO "job" VALUES(18,'647852f9-bebc-405b-9a20-718e7e1aa170','','bulk3','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','true','',1,0,0,1,'CREATED',NULL,'{}','{}','{}',0,0,10,'bulk3_647852f9',NULL,0,0,0,1778722996957545,'',0,'',0,'');
INSERT INTO "job" VALUES(19,'28d82508-99fb-4c42-b958-07b4e788678f','','bulk4','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','true','',1,0,0,1,'CREATED',NULL,'{}','{}','{}',0,0,10,'bulk4_28d82508',NULL,0,0,0,1778722996957545,'',0,'',0,'');
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
INSERT INTO "lease" VALUES(1,'launcher','laptop','pid:[4026531836]',30729,'113253','',1778722994858154,1778722994858948,1778722995926737,'there is nothing left to do','');
INSERT INTO "lease" VALUES(2,'launcher','laptop','pid:[4026531836]',30825,'113394','',1778722996450009,1778722996450845,1778722996516687,'signal SIGTERM','');
INSERT INTO "lease" VALUES(3,'launcher','laptop','pid:[4026531836]',31093,'113547','1',1778722998252928,1778722998253636,1778722999289924,'there is nothing left to do','');
INSERT INTO "lease" VALUES(4,'launcher','laptop','pid:[4026531836]',31466,'113731','',1778723000004948,1778723000005875,NULL,'','');
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
CREATE INDEX job_unprepared_of_launch ON job (queued_launch_id, num_nodes, ranks_per_node, node_packing_count, gpus_per_rank, priority DESC, wall_time_minutes DESC) WHERE lease IS NULL AND state IN ('CREATED', 'READY', 'STAGED_IN') AND queued_launch_id IS NOT NULL;
CREATE INDEX job_runnable_of_launch ON job (queued_launch_id, num_nodes, ranks_per_node, node_packing_count, gpus_per_rank, priority DESC, wall_time_minutes DESC) WHERE lease IS NULL AND state IN ('PREPROCESSED', 'RESTART_READY') AND queued_launch_id IS NOT NULL;
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
PRAGMA user_version = 3;
