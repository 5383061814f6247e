BEGIN TRANSACTION;
CREATE TABLE action (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    time INTEGER NOT NULL,
    author INTEGER NOT NULL,
    kind TEXT NOT NULL,
    jobs INTEGER NOT NULL DEFAULT 0,
    fields TEXT NOT NULL DEFAULT '{}',
    undone INTEGER
);
INSERT INTO "action" VALUES(1,1796072260382628,1,'kill',1,'{"state": "USER_KILLED"}',NULL);
INSERT INTO "action" VALUES(2,1796072260388877,2,'modify',1,'{"state": "RESTART_READY"}',NULL);
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
CREATE TABLE author (
    id INTEGER PRIMARY KEY,
    user TEXT NOT NULL,
    host TEXT NOT NULL,
    command TEXT NOT NULL,
    UNIQUE (user, host, command)
);
INSERT INTO "author" VALUES(1,'root','laptop','balsam killjob');
INSERT INTO "author" VALUES(2,'root','laptop','make_old.py');
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
    tries INTEGER NOT NULL DEFAULT 1,
    expected_start INTEGER,
    polled INTEGER,
    environment TEXT NOT NULL DEFAULT '{}'
);
INSERT INTO "batch_job" VALUES(1,'1','LocalScheduler@laptop:/tmp/old-balsam/.balsam/local-scheduler','datascience','none',1,5,'serial','nothing','{}','','/tmp/old-balsam/db/qsubmit/qlaunch1.sh','submitted','',0,1,1778792260634535,NULL,NULL,NULL,'/tmp/old-balsam/db/qsubmit/qlaunch1.out','[]','{}',NULL,'',1,NULL,NULL,'{"LANG": "C.UTF-8", "HOME": "/tmp/old-balsam", "PATH": "/usr/local/bin:/usr/bin:/bin"}');
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
CREATE TABLE edit (
    job INTEGER NOT NULL,
    action INTEGER NOT NULL,
    field TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    old,
    shared INTEGER,
    PRIMARY KEY (job, action, field)
) WITHOUT ROWID;
INSERT INTO "edit" VALUES(1,2,'state',1,'JOB_FINISHED',NULL);
INSERT INTO "edit" VALUES(8,1,'state',0,'CREATED',NULL);
CREATE TABLE edit_text (id INTEGER PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE event (
    id INTEGER PRIMARY KEY,
    job INTEGER NOT NULL,
    time INTEGER NOT NULL,
    from_state TEXT NOT NULL,
    to_state TEXT NOT NULL,
    message TEXT NOT NULL DEFAULT '',
    data TEXT
);
INSERT INTO "event" VALUES(1,2,1778792258671645,'CREATED','AWAITING_PARENTS','',NULL);
INSERT INTO "event" VALUES(2,3,1778792258674083,'CREATED','AWAITING_PARENTS','',NULL);
INSERT INTO "event" VALUES(3,4,1778792258675785,'CREATED','AWAITING_PARENTS','',NULL);
INSERT INTO "event" VALUES(4,5,1778792258677232,'CREATED','AWAITING_PARENTS','',NULL);
INSERT INTO "event" VALUES(5,7,1778792258679882,'CREATED','AWAITING_PARENTS','',NULL);
INSERT INTO "event" VALUES(6,1,1778792259686655,'CREATED','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(7,1,1778792259686655,'PREPROCESSED','RUNNING','',NULL);
INSERT INTO "event" VALUES(8,6,1778792259686655,'CREATED','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(9,6,1778792259686655,'PREPROCESSED','RUNNING','',NULL);
INSERT INTO "event" VALUES(10,1,1778792259697253,'RUNNING','RUN_DONE','',NULL);
INSERT INTO "event" VALUES(11,1,1778792259697253,'RUN_DONE','JOB_FINISHED','',NULL);
INSERT INTO "event" VALUES(12,6,1778792259697353,'RUNNING','RUN_ERROR','nonzero return 3',NULL);
INSERT INTO "event" VALUES(13,6,1778792259697353,'RUN_ERROR','FAILED','',NULL);
INSERT INTO "event" VALUES(14,2,1778792259698560,'AWAITING_PARENTS','READY','',NULL);
INSERT INTO "event" VALUES(15,3,1778792259698560,'AWAITING_PARENTS','READY','',NULL);
INSERT INTO "event" VALUES(16,5,1778792259698560,'AWAITING_PARENTS','READY','',NULL);
INSERT INTO "event" VALUES(17,7,1778792259698560,'AWAITING_PARENTS','FAILED','One or more parent jobs failed','{"parent":6}');
INSERT INTO "event" VALUES(18,2,1778792259698560,'READY','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(19,2,1778792259698560,'PREPROCESSED','RUNNING','',NULL);
INSERT INTO "event" VALUES(20,9,1778792259707720,'CREATED','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(21,9,1778792259707720,'PREPROCESSED','RUNNING','',NULL);
INSERT INTO "event" VALUES(22,2,1778792259728577,'RUNNING','RUN_DONE','',NULL);
INSERT INTO "event" VALUES(23,2,1778792259728577,'RUN_DONE','JOB_FINISHED','',NULL);
INSERT INTO "event" VALUES(24,9,1778792259729924,'RUNNING','RUN_DONE','',NULL);
INSERT INTO "event" VALUES(25,9,1778792259736844,'RUN_DONE','POSTPROCESSED','',NULL);
INSERT INTO "event" VALUES(26,9,1778792259736844,'POSTPROCESSED','JOB_FINISHED','',NULL);
INSERT INTO "event" VALUES(27,5,1778792260087568,'READY','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(28,5,1778792260087568,'PREPROCESSED','RUNNING','',NULL);
INSERT INTO "event" VALUES(29,5,1778792260149729,'RUNNING','RUN_TIMEOUT','Told to stop at 11-30-2026 20:57:40.146759, killed by signal 15 (SIGTERM)',NULL);
INSERT INTO "event" VALUES(30,5,1778792260149729,'RUN_TIMEOUT','RESTART_READY','',NULL);
INSERT INTO "event" VALUES(31,8,1778792260379897,'CREATED','USER_KILLED','',NULL);
INSERT INTO "event" VALUES(32,1,1778792260388914,'JOB_FINISHED','RESTART_READY','User mutated state from Python',NULL);
INSERT INTO "event" VALUES(33,3,1778792260388914,'READY','AWAITING_PARENTS','A parent has yet to finish',NULL);
INSERT INTO "event" VALUES(34,5,1778792260388914,'RESTART_READY','AWAITING_PARENTS','A parent has yet to finish',NULL);
INSERT INTO "event" VALUES(35,12,1778792260394297,'CREATED','AWAITING_PARENTS','',NULL);
INSERT INTO "event" VALUES(36,10,1778792262592641,'CREATED','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(37,10,1778792262592641,'PREPROCESSED','RUNNING','',NULL);
INSERT INTO "event" VALUES(38,11,1778792262592641,'CREATED','PREPROCESSED','',NULL);
INSERT INTO "event" VALUES(39,11,1778792262592641,'PREPROCESSED','RUNNING','',NULL);
CREATE TABLE failure (id INTEGER PRIMARY KEY, cause TEXT NOT NULL UNIQUE, jobs INTEGER NOT NULL);
INSERT INTO "failure" VALUES(1,'exit code 3',1);
INSERT INTO "failure" VALUES(2,'parent failed',1);
CREATE TABLE hidden_count (
    large_write INTEGER NOT NULL,
    workflow TEXT NOT NULL,
    state TEXT NOT NULL,
    jobs INTEGER NOT NULL,
    PRIMARY KEY (large_write, workflow, state)
) WITHOUT ROWID;
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
    launcher_deaths INTEGER NOT NULL DEFAULT 0,
    failure INTEGER
);
INSERT INTO "job" VALUES(1,'8300d4d2-e546-482d-af8d-1200b030d32d','first','done','it''s "kept"',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{"A": "1=2"}','sh','''echo done > done.txt''','',1,0,0,1,'RESTART_READY',NULL,'{"x": [1, "ü", null]}','{"size": "big", "colour": "red"}','{}',0,0,10,'first/done_8300d4d2',0,1,0,0,1778792258668317,'',0,'',0,'','all_finished',0,NULL,NULL,0,0,NULL);
INSERT INTO "job" VALUES(2,'a497d3a8-ff34-4d52-b597-a52195f7cf8a','first','child-done','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''cat done.txt''','',1,0,0,1,'JOB_FINISHED',NULL,'{}','{}','{}',0,0,10,'first/child-done_a497d3a8',0,1,0,1,1778792258671196,'',0,'',0,'','all_finished',0,NULL,NULL,0,0,NULL);
INSERT INTO "job" VALUES(3,'734b0970-9e66-45f3-b216-5bdbfc06fa86','later','child-late','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',1,0,0,1,'AWAITING_PARENTS',NULL,'{}','{"size": "small"}','{}',0,0,10,'later/child-late_734b0970',NULL,0,0,1,1778792258673765,'',0,'',0,'','all_finished',0,NULL,NULL,0,0,NULL);
INSERT INTO "job" VALUES(4,'35009867-c2b9-49d4-9704-305fa1196e2d','later','grandchild-late','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',1,0,0,1,'AWAITING_PARENTS',NULL,'{}','{}','{}',0,0,10,'later/grandchild-late_35009867',NULL,0,0,1,1778792258675585,'',0,'',0,'','all_finished',0,NULL,NULL,0,0,NULL);
INSERT INTO "job" VALUES(5,'5cc46b14-d161-424c-8c0f-5eb331fde944','second','child-timed-out','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''test $BALSAM_ATTEMPT -gt 1 || sleep 60''','',1,0,0,1,'AWAITING_PARENTS',NULL,'{}','{}','{}',0,0,10,'second/child-timed-out_5cc46b14',-15,1,1,1,1778792258677046,'',0,'',0,'','all_finished',0,NULL,1796072260146759,0,0,NULL);
INSERT INTO "job" VALUES(6,'fd354afd-9dd4-44a7-a71e-20059c48780d','first','failed','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''exit 3''','',1,0,0,1,'FAILED',NULL,'{}','{}','{}',0,0,10,'first/failed_fd354afd',3,1,0,0,1778792258678384,'',0,'',0,'','all_finished',0,NULL,NULL,0,0,1);
INSERT INTO "job" VALUES(7,'b5a3e9e9-cbe5-445b-a2e9-e3e583972512','first','child-failed','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',1,0,0,1,'FAILED',NULL,'{}','{}','{}',0,0,10,'first/child-failed_b5a3e9e9',NULL,0,0,1,1778792258679725,'',0,'',0,'','all_finished',0,NULL,NULL,0,0,2);
INSERT INTO "job" VALUES(8,'69a8f35f-e703-450e-a6e1-943983d1f9dc','later','killed','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',1,0,0,1,'USER_KILLED',NULL,'{}','{}','{}',0,0,10,'later/killed_69a8f35f',NULL,0,0,0,1778792258681069,'',0,'',0,'','all_finished',0,NULL,NULL,0,0,NULL);
INSERT INTO "job" VALUES(9,'8abf86bf-311f-449f-83c7-47ef48899d0a','first','staged','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','staged','''true''','',1,0,0,1,'JOB_FINISHED',NULL,'{}','{}','{}',0,0,10,'first/staged_8abf86bf',0,1,0,0,1778792258682433,'',0,'',0,'','all_finished',0,NULL,NULL,0,0,NULL);
INSERT INTO "job" VALUES(10,'b5e4e82e-3a7a-4231-a2f9-cdd489415595','third','running0','',4,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''test $BALSAM_ATTEMPT -gt 1 || sleep 60''','',1,0,0,1,'RUNNING',NULL,'{}','{}','{}',0,0,10,'third/running0_b5e4e82e',NULL,1,0,0,1778792260391508,'',0,'',0,'','all_finished',0,NULL,NULL,0,0,NULL);
INSERT INTO "job" VALUES(11,'ec97308c-3da8-472b-a83d-83619bb025cc','third','running1','',4,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''test $BALSAM_ATTEMPT -gt 1 || sleep 60''','',1,0,0,1,'RUNNING',NULL,'{}','{}','{}',0,0,10,'third/running1_ec97308c',NULL,1,0,0,1778792260392905,'',0,'',0,'','all_finished',0,NULL,NULL,0,0,NULL);
INSERT INTO "job" VALUES(12,'0017c314-1950-42ea-a75f-e18355d2f9dc','third','child-running','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',1,0,0,1,'AWAITING_PARENTS',NULL,'{}','{}','{}',0,0,10,'third/child-running_0017c314',NULL,0,0,2,1778792260394095,'',0,'',0,'','all_finished',0,NULL,NULL,0,0,NULL);
INSERT INTO "job" VALUES(13,'7d0299c7-7235-483f-a358-29317c385de8','third','waiting','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',1,0,0,1,'CREATED',NULL,'{}','{}','{}',0,-1,10,'third/waiting_7d0299c7',NULL,0,0,0,1778792260395384,'',0,'',0,'','all_finished',0,NULL,NULL,0,0,NULL);
INSERT INTO "job" VALUES(14,'3f5d3f5e-e10b-4ada-abb8-71421131db81','later','no-wait','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','''true''','',0,0,0,1,'CREATED',NULL,'{}','{}','{}',0,0,10,'later/no-wait_3f5d3f5e',NULL,0,0,0,1778792260396700,'',0,'',0,'','all_finished',0,NULL,NULL,0,0,NULL);
INSERT INTO "job" VALUES(15,'910a6345-59dc-4557-a46b-c3a610bab7a9','','bulk0','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','true','',1,0,0,1,'CREATED',NULL,'{}','{}','{}',0,0,10,'bulk0_910a6345',NULL,0,0,0,1778792260397817,'',0,'',0,'','all_finished',0,NULL,NULL,0,0,NULL);
INSERT INTO "job" VALUES(16,'7e8b1fb6-1c0d-4f01-989c-4d6c56ccbf78','','bulk1','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','true','',1,0,0,1,'CREATED',NULL,'{}','{}','{}',0,0,10,'bulk1_7e8b1fb6',NULL,0,0,0,1778792260397817,'',0,'',0,'','all_finished',0,NULL,NULL,0,0,NULL);
INSERT INTO "job" VALUES(17,'b5f85a4a-f527-43fc-bad7-857c21808424','','bulk2','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','true','',1,0,0,1,'CREATED',NULL,'{}','{}','{}',0,0,10,'bulk2_b5f85a4a',NULL,0,0,0,1778792260397817,'',0,'',0,'','all_finished',0,NULL,NULL,0,0,NULL);
INSERT INTO "job" VALUES(18,'7a8a6230-1408-4eaf-a822-5175710a12dd','','bulk3','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','true','',1,0,0,1,'CREATED',NULL,'{}','{}','{}',0,0,10,'bulk3_7a8a6230',NULL,0,0,0,1778792260397817,'',0,'',0,'','all_finished',0,NULL,NULL,0,0,NULL);
INSERT INTO "job" VALUES(19,'595ab1c7-5d13-4709-ae9d-e09bc725eaa9','','bulk4','',NULL,'*','','','',1,1,0,1,'none',1,1,1,'{}','sh','true','',1,0,0,1,'CREATED',NULL,'{}','{}','{}',0,0,10,'bulk4_595ab1c7',NULL,0,0,0,1778792260397817,'',0,'',0,'','all_finished',0,NULL,NULL,0,0,NULL);
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
    taken_by TEXT NOT NULL DEFAULT '',
    environment TEXT NOT NULL DEFAULT ''
);
INSERT INTO "lease" VALUES(1,'launcher','laptop','pid:[4026531836]',22571,'7039665','',1778792258981317,1778792258989821,1778792259757706,'every job has ended','{"workflow": "first", "tags": [], "launch": null, "launch_only": false, "nodes": [[2, null, 0]], "serial_only": true, "no_mpi": "needs --job-mode=mpi or mixed", "mpi": null, "ends_us": null, "trouble": "", "apart": false, "steps": 20}','','{"modules": [], "versions": {"balsam_lite": "0.1.0", "Python": "3.11.7", "Linux": "6.18.44-fc-v769"}, "environment_hash": "1a8985a860365854"}');
INSERT INTO "lease" VALUES(2,'launcher','laptop','pid:[4026531836]',22580,'7039775','',1778792260075220,1778792260086090,1778792260170628,'signal SIGTERM; 1 job(s) left: waits for a free place (1)','{"workflow": "second", "tags": [], "launch": null, "launch_only": false, "nodes": [[2, null, 0]], "serial_only": true, "no_mpi": "needs --job-mode=mpi or mixed", "mpi": null, "ends_us": null, "trouble": "", "apart": false, "steps": 20}','','{"modules": [], "versions": {"balsam_lite": "0.1.0", "Python": "3.11.7", "Linux": "6.18.44-fc-v769"}, "environment_hash": "1a8985a860365854"}');
INSERT INTO "lease" VALUES(3,'launcher','laptop','pid:[4026531836]',22587,'7039873','1',1778792261138710,1778792261146634,1778792262197857,'no job of workflow nothing came','{"workflow": "nothing", "tags": [], "launch": 1, "launch_only": false, "nodes": [[1, null, 0]], "serial_only": true, "no_mpi": "needs --job-mode=mpi or mixed", "mpi": null, "ends_us": 1796072545000006, "trouble": "", "apart": false, "steps": 20}','','{"modules": [], "versions": {"balsam_lite": "0.1.0", "Python": "3.11.7", "Linux": "6.18.44-fc-v769"}, "environment_hash": "cc73fac39107ded4", "environment_difference": {}}');
INSERT INTO "lease" VALUES(4,'launcher','laptop','pid:[4026531836]',22591,'7040024','',1778792262582684,1778792262591723,NULL,'','{"workflow": "third", "tags": [], "launch": null, "launch_only": false, "nodes": [[2, null, 0]], "serial_only": true, "no_mpi": "needs --job-mode=mpi or mixed", "mpi": null, "ends_us": null, "trouble": "", "apart": false, "steps": 20}','','{"modules": [], "versions": {"balsam_lite": "0.1.0", "Python": "3.11.7", "Linux": "6.18.44-fc-v769"}, "environment_hash": "1a8985a860365854"}');
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO "meta" VALUES('file','[2181569, "laptop", "/tmp/old-balsam/db/balsam.sqlite3"]');
INSERT INTO "meta" VALUES('id','8273cf3de22bbf7139a29900d441ad16');
CREATE TABLE run (
    job INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    lease INTEGER,
    nodes TEXT NOT NULL DEFAULT '',
    gpus TEXT NOT NULL DEFAULT '',
    cpus TEXT NOT NULL DEFAULT '',
    started INTEGER,
    ended INTEGER,
    return_code INTEGER,
    user_us INTEGER,
    system_us INTEGER,
    max_memory INTEGER,
    cause TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (job, attempt)
) WITHOUT ROWID;
INSERT INTO "run" VALUES(1,1,1,'laptop/1','','',1796072259693546,1796072259697253,0,2425,0,NULL,'');
INSERT INTO "run" VALUES(2,1,1,'laptop/1','','',1796072259705407,1796072259728577,0,2889,0,NULL,'');
INSERT INTO "run" VALUES(5,1,2,'laptop/1','','',1796072260130256,1796072260149729,-15,107,2686,NULL,'told to stop');
INSERT INTO "run" VALUES(6,1,1,'laptop/2','','',1796072259694858,1796072259697353,3,1942,0,NULL,'');
INSERT INTO "run" VALUES(9,1,1,'laptop/2','','',1796072259727145,1796072259729924,0,1508,0,NULL,'');
INSERT INTO "run" VALUES(10,1,4,'laptop/1','','',NULL,NULL,NULL,NULL,NULL,NULL,'');
INSERT INTO "run" VALUES(11,1,4,'laptop/2','','',NULL,NULL,NULL,NULL,NULL,NULL,'');
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
CREATE TABLE trash (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    action INTEGER NOT NULL,
    time INTEGER NOT NULL,
    jobs TEXT NOT NULL,
    content BLOB NOT NULL
);
CREATE TABLE workflow_count (
    workflow TEXT NOT NULL,
    state TEXT NOT NULL,
    jobs INTEGER NOT NULL,
    PRIMARY KEY (workflow, state)
) WITHOUT ROWID;
INSERT INTO "workflow_count" VALUES('','CREATED',5);
INSERT INTO "workflow_count" VALUES('first','FAILED',2);
INSERT INTO "workflow_count" VALUES('first','JOB_FINISHED',2);
INSERT INTO "workflow_count" VALUES('first','RESTART_READY',1);
INSERT INTO "workflow_count" VALUES('later','AWAITING_PARENTS',2);
INSERT INTO "workflow_count" VALUES('later','CREATED',1);
INSERT INTO "workflow_count" VALUES('later','USER_KILLED',1);
INSERT INTO "workflow_count" VALUES('second','AWAITING_PARENTS',1);
INSERT INTO "workflow_count" VALUES('third','AWAITING_PARENTS',1);
INSERT INTO "workflow_count" VALUES('third','CREATED',1);
INSERT INTO "workflow_count" VALUES('third','RUNNING',2);
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
CREATE INDEX job_failure ON job (failure) WHERE failure IS NOT NULL;
CREATE INDEX job_queued_launch ON job (queued_launch_id) WHERE queued_launch_id IS NOT NULL;
CREATE UNIQUE INDEX app_name ON app (name);
CREATE INDEX dependency_child ON dependency (child, parent);
CREATE INDEX event_job ON event (job);
CREATE INDEX event_time ON event (time);
CREATE INDEX trash_action ON trash (action);
CREATE INDEX trash_time ON trash (time);
CREATE INDEX lease_open ON lease (id) WHERE closed IS NULL;
CREATE INDEX batch_job_scheduler_id ON batch_job (scheduler_id);
CREATE INDEX large_write_part_of ON large_write_part (large_write);
CREATE INDEX large_write_part_bounds ON large_write_part (first, last);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('app',2);
INSERT INTO "sqlite_sequence" VALUES('job',19);
INSERT INTO "sqlite_sequence" VALUES('lease',4);
INSERT INTO "sqlite_sequence" VALUES('action',2);
INSERT INTO "sqlite_sequence" VALUES('batch_job',1);
COMMIT;
PRAGMA user_version = 7;
