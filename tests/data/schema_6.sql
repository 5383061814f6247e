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
    exit_0_is_done_after_stop INTEGER NOT NULL DEFAULT 0,
    keep_background INTEGER NOT NULL DEFAULT 0
);
INSERT INTO "app" VALUES(1,'sh','a shell''s line','bash -c','','','','{}','','{}','{}','','',0,0);
INSERT INTO "app" VALUES(2,'staged','','bash -c','bash -c true','','true','{}','','{}','{}','','',0,0);
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
INSERT INTO "batch_job" VALUES(1,'1','LocalScheduler@laptop:/tmp/old-balsam/.balsam/local-scheduler','datascience','none',1,5,'serial','nothing','{}','','/tmp/old-balsam/db/qsubmit/qlaunch1.sh','submitted','',0,1,1778780790235600,NULL,NULL,NULL,'/tmp/old-balsam/db/qsubmit/qlaunch1.out','[]','{}',NULL,'',1);
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
INSERT INTO "event" VALUES(1,2,1778780788241888,'CREATED','AWAITING_PARENTS','',NULL);
INSERT INTO "event" VALUES(2,3,1778780788244679,'CREATED','AWAITING_PARENTS','',NULL);
INSERT INTO "event" VALUES(3,4,1778780788247126,'CREATED','AWAITING_PARENTS','',NULL);
INSERT INTO "event" VALUES(4,5,1778780788248816,'CREATED','AWAITING_PARENTS','',NULL);
INSERT INTO "event" VALUES(5,7,1778780788251996,'CREATED','AWAITING_PARENTS','',NULL);
INSERT INTO "event" VALUES(6,1,1778780789258530,'CREATED','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(7,1,1778780789258530,'PREPROCESSED','RUNNING','','{"lease":1}');
INSERT INTO "event" VALUES(8,6,1778780789258530,'CREATED','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(9,6,1778780789258530,'PREPROCESSED','RUNNING','','{"lease":1}');
INSERT INTO "event" VALUES(10,1,1778780789271940,'RUNNING','RUN_DONE','','{"started":1796060789266601}');
INSERT INTO "event" VALUES(11,1,1778780789271940,'RUN_DONE','JOB_FINISHED','',NULL);
INSERT INTO "event" VALUES(12,2,1778780789274028,'AWAITING_PARENTS','READY','',NULL);
INSERT INTO "event" VALUES(13,3,1778780789274028,'AWAITING_PARENTS','READY','',NULL);
INSERT INTO "event" VALUES(14,5,1778780789274028,'AWAITING_PARENTS','READY','',NULL);
INSERT INTO "event" VALUES(15,2,1778780789274028,'READY','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(16,2,1778780789274028,'PREPROCESSED','RUNNING','','{"lease":1}');
INSERT INTO "event" VALUES(17,6,1778780789274380,'RUNNING','RUN_ERROR','nonzero return 3','{"started":1796060789268801,"return_code":3}');
INSERT INTO "event" VALUES(18,6,1778780789274380,'RUN_ERROR','FAILED','',NULL);
INSERT INTO "event" VALUES(19,7,1778780789288692,'AWAITING_PARENTS','FAILED','One or more parent jobs failed','{"parent":6}');
INSERT INTO "event" VALUES(20,9,1778780789292493,'CREATED','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(21,9,1778780789292493,'PREPROCESSED','RUNNING','','{"lease":1}');
INSERT INTO "event" VALUES(22,9,1778780789311350,'RUNNING','RUN_DONE','','{"started":1796060789309560}');
INSERT INTO "event" VALUES(23,2,1778780789313988,'RUNNING','RUN_DONE','','{"started":1796060789283360}');
INSERT INTO "event" VALUES(24,2,1778780789313988,'RUN_DONE','JOB_FINISHED','',NULL);
INSERT INTO "event" VALUES(25,9,1778780789316969,'RUN_DONE','POSTPROCESSED','',NULL);
INSERT INTO "event" VALUES(26,9,1778780789316969,'POSTPROCESSED','JOB_FINISHED','',NULL);
INSERT INTO "event" VALUES(27,5,1778780789653626,'READY','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(28,5,1778780789653626,'PREPROCESSED','RUNNING','','{"lease":2}');
INSERT INTO "event" VALUES(29,5,1778780789727975,'RUNNING','RUN_TIMEOUT','Told to stop at 11-30-2026 17:46:29.722463, killed by signal 15 (SIGTERM)','{"started":1796060789703891,"return_code":-15}');
INSERT INTO "event" VALUES(30,5,1778780789727975,'RUN_TIMEOUT','RESTART_READY','',NULL);
INSERT INTO "event" VALUES(31,8,1778780789957423,'CREATED','USER_KILLED','',NULL);
INSERT INTO "event" VALUES(32,1,1778780789964875,'JOB_FINISHED','RESTART_READY','User mutated state from Python',NULL);
INSERT INTO "event" VALUES(33,3,1778780789964875,'READY','AWAITING_PARENTS','A parent has yet to finish',NULL);
INSERT INTO "event" VALUES(34,5,1778780789964875,'RESTART_READY','AWAITING_PARENTS','A parent has yet to finish',NULL);
INSERT INTO "event" VALUES(35,12,1778780789971856,'CREATED','AWAITING_PARENTS','',NULL);
INSERT INTO "event" VALUES(36,10,1778780793007683,'CREATED','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(37,10,1778780793007683,'PREPROCESSED','RUNNING','','{"lease":4}');
INSERT INTO "event" VALUES(38,11,1778780793007683,'CREATED','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(39,11,1778780793007683,'PREPROCESSED','RUNNING','','{"lease":4}');
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
    told_to_stop INTEGER,
    keep_background INTEGER NOT NULL DEFAULT 0,
    launcher_deaths INTEGER NOT NULL DEFAULT 0
);
INSERT INTO "job" VALUES(1,'ee8669bf-19d3-4bc6-9f84-8e1874496e1c','first','done','it''s "kept"',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{"A": "1=2"}','sh','''echo done > done.txt''','',1,0,0,1,'RESTART_READY',NULL,'{"x": [1, "ü", null]}','{"size": "big", "colour": "red"}','{}',0,0,10,'first/done_ee8669bf',0,1,0,0,1778780788238282,'',0,'',0,'','all_finished',0,NULL,NULL,0,0);
INSERT INTO "job" VALUES(2,'29aabbcd-3a01-4dd2-a47f-649bfba32bdc','first','child-done','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''cat done.txt''','',1,0,0,1,'JOB_FINISHED',NULL,'{}','{}','{}',0,0,10,'first/child-done_29aabbcd',0,1,0,1,1778780788241498,'',0,'',0,'','all_finished',0,NULL,NULL,0,0);
INSERT INTO "job" VALUES(3,'58a37a1a-4f68-41eb-a637-b40a2680e753','later','child-late','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',1,0,0,1,'AWAITING_PARENTS',NULL,'{}','{"size": "small"}','{}',0,0,10,'later/child-late_58a37a1a',NULL,0,0,1,1778780788244311,'',0,'',0,'','all_finished',0,NULL,NULL,0,0);
INSERT INTO "job" VALUES(4,'90829fed-d31b-48ee-9ff8-d414fb89a1a9','later','grandchild-late','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',1,0,0,1,'AWAITING_PARENTS',NULL,'{}','{}','{}',0,0,10,'later/grandchild-late_90829fed',NULL,0,0,1,1778780788246911,'',0,'',0,'','all_finished',0,NULL,NULL,0,0);
INSERT INTO "job" VALUES(5,'bcbfcffe-a2b6-4599-8ef3-ef48e183afea','second','child-timed-out','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''test $BALSAM_ATTEMPT -gt 1 || sleep 60''','',1,0,0,1,'AWAITING_PARENTS',NULL,'{}','{}','{}',0,0,10,'second/child-timed-out_bcbfcffe',-15,1,1,1,1778780788248618,'',0,'',0,'','all_finished',0,NULL,1796060789722463,0,0);
INSERT INTO "job" VALUES(6,'5eddab3c-c36b-4d61-834f-0285070f7072','first','failed','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''exit 3''','',1,0,0,1,'FAILED',NULL,'{}','{}','{}',0,0,10,'first/failed_5eddab3c',3,1,0,0,1778780788250251,'',0,'',0,'','all_finished',0,NULL,NULL,0,0);
INSERT INTO "job" VALUES(7,'9b324eed-85e5-4eb2-ba9b-9713711f1c96','first','child-failed','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',1,0,0,1,'FAILED',NULL,'{}','{}','{}',0,0,10,'first/child-failed_9b324eed',NULL,0,0,1,1778780788251819,'',0,'',0,'','all_finished',0,NULL,NULL,0,0);
INSERT INTO "job" VALUES(8,'8662063c-ba6f-4bb4-8673-a3cb0e0c0d57','later','killed','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',1,0,0,1,'USER_KILLED',NULL,'{}','{}','{}',0,0,10,'later/killed_8662063c',NULL,0,0,0,1778780788253407,'',0,'',0,'','all_finished',0,NULL,NULL,0,0);
INSERT INTO "job" VALUES(9,'31423d85-62e2-4642-ab49-f9681720d601','first','staged','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','staged','''true''','',1,0,0,1,'JOB_FINISHED',NULL,'{}','{}','{}',0,0,10,'first/staged_31423d85',0,1,0,0,1778780788254940,'',0,'',0,'','all_finished',0,NULL,NULL,0,0);
INSERT INTO "job" VALUES(10,'61ea821c-4295-43d6-9d87-33119694e9a0','third','running0','',4,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''test $BALSAM_ATTEMPT -gt 1 || sleep 60''','',1,0,0,1,'RUNNING',NULL,'{}','{}','{}',0,0,10,'third/running0_61ea821c',NULL,1,0,0,1778780789968114,'',0,'',0,'','all_finished',0,NULL,NULL,0,0);
INSERT INTO "job" VALUES(11,'5345b76a-ac42-4959-a528-9eccd1418bff','third','running1','',4,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''test $BALSAM_ATTEMPT -gt 1 || sleep 60''','',1,0,0,1,'RUNNING',NULL,'{}','{}','{}',0,0,10,'third/running1_5345b76a',NULL,1,0,0,1778780789970160,'',0,'',0,'','all_finished',0,NULL,NULL,0,0);
INSERT INTO "job" VALUES(12,'f8e32f5b-2161-4e9c-9978-1fed29e09160','third','child-running','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',1,0,0,1,'AWAITING_PARENTS',NULL,'{}','{}','{}',0,0,10,'third/child-running_f8e32f5b',NULL,0,0,2,1778780789971648,'',0,'',0,'','all_finished',0,NULL,NULL,0,0);
INSERT INTO "job" VALUES(13,'95514b01-155f-4052-b637-38f605f5c602','third','waiting','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',1,0,0,1,'CREATED',NULL,'{}','{}','{}',0,-1,10,'third/waiting_95514b01',NULL,0,0,0,1778780789972984,'',0,'',0,'','all_finished',0,NULL,NULL,0,0);
INSERT INTO "job" VALUES(14,'4611d444-7341-4dcb-bb65-992bace9e481','later','no-wait','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',0,0,0,1,'CREATED',NULL,'{}','{}','{}',0,0,10,'later/no-wait_4611d444',NULL,0,0,0,1778780789974485,'',0,'',0,'','all_finished',0,NULL,NULL,0,0);
INSERT INTO "job" VALUES(15,'c18bef66-369b-42e1-94ea-83b92fae8953','','bulk0','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','true','',1,0,0,1,'CREATED',NULL,'{}','{}','{}',0,0,10,'bulk0_c18bef66',NULL,0,0,0,1778780789975812,'',0,'',0,'','all_finished',0,NULL,NULL,0,0);
INSERT INTO "job" VALUES(16,'11ee0af5-8346-438a-968b-887beab786c0','','bulk1','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','true','',1,0,0,1,'CREATED',NULL,'{}','{}','{}',0,0,10,'bulk1_11ee0af5',NULL,0,0,0,1778780789975812,'',0,'',0,'','all_finished',0,NULL,NULL,0,0);
INSERT INTO "job" VALUES(17,'18324151-919b-49de-9171-7fa22eebe87e','','bulk2','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','true','',1,0,0,1,'CREATED',NULL,'{}','{}','{}',0,0,10,'bulk2_18324151',NULL,0,0,0,1778780789975812,'',0,'',0,'','all_finished',0,NULL,NULL,0,0);
INSERT INTO "job" VALUES(18,'f2c24e7c-aa08-41b5-a0fe-46337cfeab5c','','bulk3','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','true','',1,0,0,1,'CREATED',NULL,'{}','{}','{}',0,0,10,'bulk3_f2c24e7c',NULL,0,0,0,1778780789975812,'',0,'',0,'','all_finished',0,NULL,NULL,0,0);
INSERT INTO "job" VALUES(19,'a8819056-4c85-4fc4-a62b-8dfdacadd6c8','','bulk4','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','true','',1,0,0,1,'CREATED',NULL,'{}','{}','{}',0,0,10,'bulk4_a8819056',NULL,0,0,0,1778780789975812,'',0,'',0,'','all_finished',0,NULL,NULL,0,0);
CREATE TABLE job_tag (tag INTEGER NOT NULL, job INTEGER NOT NULL, PRIMARY KEY (tag, job)) WITHOUT ROWID;
INSERT INTO "job_tag" VALUES(1,1);
INSERT INTO "job_tag" VALUES(2,1);
INSERT INTO "job_tag" VALUES(3,3);
CREATE TABLE large_write (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    host TEXT NOT NULL,
    pid_namespace TEXT NOT NULL,
    pid INTEGER NOT NULL,
    started TEXT NOT NULL,
    touched INTEGER NOT NULL,
    total INTEGER NOT NULL,
    done INTEGER NOT NULL DEFAULT 0,
    counted TEXT NOT NULL DEFAULT '{}',
    first INTEGER NOT NULL DEFAULT 0,
    last INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE large_write_part (
    id INTEGER PRIMARY KEY,
    large_write INTEGER NOT NULL,
    action TEXT NOT NULL,
    parameters TEXT NOT NULL,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    jobs TEXT NOT NULL
);
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
    note TEXT NOT NULL DEFAULT '',
    taken_by TEXT NOT NULL DEFAULT ''
);
INSERT INTO "lease" VALUES(1,'launcher','laptop','pid:[4026531836]',27007,'5892622','',1778780788539714,1778780788558115,1778780789337158,'every job has ended','','');
INSERT INTO "lease" VALUES(2,'launcher','laptop','pid:[4026531836]',27016,'5892733','',1778780789638876,1778780789641884,1778780789749997,'signal SIGTERM; 1 job(s) left: waits for a free place (1)','','');
INSERT INTO "lease" VALUES(3,'launcher','laptop','pid:[4026531836]',27023,'5892835','1',1778780790771822,1778780790777535,1778780791892828,'no job of workflow nothing came','','');
INSERT INTO "lease" VALUES(4,'launcher','laptop','pid:[4026531836]',27314,'5892989','',1778780792933567,1778780792960349,NULL,'','','');
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO "meta" VALUES('file','[2179413, "laptop", "/tmp/old-balsam/db/balsam.sqlite3"]');
INSERT INTO "meta" VALUES('id','144e5ba26acf412dc99679eac023830a');
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
CREATE INDEX job_unprepared ON job (num_nodes, ranks_per_node, node_packing_count, gpus_per_rank, priority DESC, wall_time_minutes DESC) WHERE lease IS NULL AND start_after IS NULL AND unfinished_parents = 0 AND launcher_deaths < 2 AND state IN ('CREATED', 'READY', 'STAGED_IN');
CREATE INDEX job_unprepared_of_workflow ON job (workflow, num_nodes, ranks_per_node, node_packing_count, gpus_per_rank, priority DESC, wall_time_minutes DESC) WHERE lease IS NULL AND start_after IS NULL AND unfinished_parents = 0 AND launcher_deaths < 2 AND state IN ('CREATED', 'READY', 'STAGED_IN');
CREATE INDEX job_runnable ON job (num_nodes, ranks_per_node, node_packing_count, gpus_per_rank, priority DESC, wall_time_minutes DESC) WHERE lease IS NULL AND start_after IS NULL AND unfinished_parents = 0 AND launcher_deaths < 2 AND state IN ('PREPROCESSED', 'RESTART_READY');
CREATE INDEX job_runnable_of_workflow ON job (workflow, num_nodes, ranks_per_node, node_packing_count, gpus_per_rank, priority DESC, wall_time_minutes DESC) WHERE lease IS NULL AND start_after IS NULL AND unfinished_parents = 0 AND launcher_deaths < 2 AND state IN ('PREPROCESSED', 'RESTART_READY');
CREATE INDEX job_unprepared_of_launch ON job (queued_launch_id, num_nodes, ranks_per_node, node_packing_count, gpus_per_rank, priority DESC, wall_time_minutes DESC) WHERE lease IS NULL AND start_after IS NULL AND unfinished_parents = 0 AND launcher_deaths < 2 AND state IN ('CREATED', 'READY', 'STAGED_IN') AND queued_launch_id IS NOT NULL;
CREATE INDEX job_runnable_of_launch ON job (queued_launch_id, num_nodes, ranks_per_node, node_packing_count, gpus_per_rank, priority DESC, wall_time_minutes DESC) WHERE lease IS NULL AND start_after IS NULL AND unfinished_parents = 0 AND launcher_deaths < 2 AND state IN ('PREPROCESSED', 'RESTART_READY') AND queued_launch_id IS NOT NULL;
CREATE INDEX job_suspect ON job (launcher_deaths DESC) WHERE lease IS NULL AND start_after IS NULL AND launcher_deaths >= 2 AND (unfinished_parents = 0 AND state IN ('PREPROCESSED', 'RESTART_READY', 'CREATED', 'READY', 'STAGED_IN') OR state IN ('RUN_DONE', 'POSTPROCESSED', 'RUN_ERROR', 'RUN_TIMEOUT'));
CREATE INDEX job_unsettled ON job (state) WHERE lease IS NULL AND launcher_deaths < 2 AND state IN ('RUN_DONE', 'POSTPROCESSED', 'RUN_ERROR', 'RUN_TIMEOUT');
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
CREATE INDEX large_write_part_of ON large_write_part (large_write);
CREATE INDEX large_write_part_bounds ON large_write_part (first, last);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('app',2);
INSERT INTO "sqlite_sequence" VALUES('job',19);
INSERT INTO "sqlite_sequence" VALUES('lease',4);
INSERT INTO "sqlite_sequence" VALUES('batch_job',1);
COMMIT;
PRAGMA user_version = 6;
