--
-- PostgreSQL database dump
--

\restrict p0VkgQqjBF4tHUDiK5PmOGDnDzne64RCB3f4hvigYUACXNOEBIFE8CMWlgDpewp

-- Dumped from database version 15.18 (Debian 15.18-0+deb12u1)
-- Dumped by pg_dump version 15.18 (Debian 15.18-0+deb12u1)

SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

SET default_tablespace = '';

SET default_table_access_method = heap;

--
-- Name: core_applicationdefinition; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.core_applicationdefinition (
    id integer NOT NULL,
    name text NOT NULL,
    description text NOT NULL,
    executable text NOT NULL,
    preprocess text NOT NULL,
    envscript text NOT NULL,
    postprocess text NOT NULL
);


--
-- Name: core_applicationdefinition_id_seq; Type: SEQUENCE; Schema: public; Owner: -
--

CREATE SEQUENCE public.core_applicationdefinition_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;


--
-- Name: core_applicationdefinition_id_seq; Type: SEQUENCE OWNED BY; Schema: public; Owner: -
--

ALTER SEQUENCE public.core_applicationdefinition_id_seq OWNED BY public.core_applicationdefinition.id;


--
-- Name: core_balsamjob; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.core_balsamjob (
    job_id uuid NOT NULL,
    workflow text NOT NULL,
    name text NOT NULL,
    description text NOT NULL,
    lock text NOT NULL,
    tick timestamp with time zone NOT NULL,
    parents text NOT NULL,
    input_files text NOT NULL,
    stage_in_url text NOT NULL,
    stage_out_files text NOT NULL,
    stage_out_url text NOT NULL,
    wall_time_minutes integer NOT NULL,
    num_nodes integer NOT NULL,
    coschedule_num_nodes integer NOT NULL,
    ranks_per_node integer NOT NULL,
    cpu_affinity text NOT NULL,
    threads_per_rank integer NOT NULL,
    threads_per_core integer NOT NULL,
    node_packing_count integer NOT NULL,
    environ_vars text NOT NULL,
    application text NOT NULL,
    args text NOT NULL,
    user_workdir text NOT NULL,
    wait_for_parents boolean NOT NULL,
    post_error_handler boolean NOT NULL,
    post_timeout_handler boolean NOT NULL,
    auto_timeout_retry boolean NOT NULL,
    state text NOT NULL,
    state_history text NOT NULL,
    data jsonb NOT NULL,
    queued_launch_id integer
);


--
-- Name: core_queuedlaunch; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.core_queuedlaunch (
    id integer NOT NULL,
    scheduler_id integer NOT NULL,
    project text NOT NULL,
    queue text NOT NULL,
    nodes integer NOT NULL,
    wall_minutes integer NOT NULL,
    job_mode text NOT NULL,
    wf_filter text NOT NULL,
    command text NOT NULL,
    state text NOT NULL,
    prescheduled_only boolean NOT NULL,
    from_balsam boolean NOT NULL
);


--
-- Name: core_queuedlaunch_id_seq; Type: SEQUENCE; Schema: public; Owner: -
--

CREATE SEQUENCE public.core_queuedlaunch_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;


--
-- Name: core_queuedlaunch_id_seq; Type: SEQUENCE OWNED BY; Schema: public; Owner: -
--

ALTER SEQUENCE public.core_queuedlaunch_id_seq OWNED BY public.core_queuedlaunch.id;


--
-- Name: core_applicationdefinition id; Type: DEFAULT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.core_applicationdefinition ALTER COLUMN id SET DEFAULT nextval('public.core_applicationdefinition_id_seq'::regclass);


--
-- Name: core_queuedlaunch id; Type: DEFAULT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.core_queuedlaunch ALTER COLUMN id SET DEFAULT nextval('public.core_queuedlaunch_id_seq'::regclass);


--
-- Data for Name: core_applicationdefinition; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.core_applicationdefinition VALUES (1, 'say-hello', '', 'echo Hello,', '', '', '');
INSERT INTO public.core_applicationdefinition VALUES (2, 'fit', 'fits a curve', 'bash -c', '', '', '/projects/alloy/check.sh');
INSERT INTO public.core_applicationdefinition VALUES (3, 'fail', '', 'ls /nowhere', '', '', '');


--
-- Data for Name: core_balsamjob; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.core_balsamjob VALUES ('91a27606-0d0f-4150-9955-8c70fb5cc177', 'later', 'mpi', '', '', '2026-11-30 21:23:16.792155+00', '[]', '*', '', '', '', 20, 2, 0, 4, 'depth', 2, 1, 1, 'PATH=/a:/b:API_KEY=secret:EMPTY=', 'say-hello', '''a  b'' "c"', '', true, false, false, true, 'CREATED', '        
[11-30-2026 21:23:16.787862 CREATED] ', '{"x": [1, 2.5, null], "text": "Zürich\nβ"}', 1);
INSERT INTO public.core_balsamjob VALUES ('55089e6d-4c32-469d-ba01-3bc16bb9c6f3', 'later', 'own', '', '', '2026-11-30 21:23:16.794723+00', '["91a27606-0d0f-4150-9955-8c70fb5cc177"]', '*', '', '', '', 1, 1, 0, 1, 'depth', 1, 1, 1, '{}', 'say-hello', 'own', '/projects/alloy/elsewhere', false, false, false, true, 'CREATED', '        
[11-30-2026 21:23:16.793941 CREATED] ', '{}', NULL);
INSERT INTO public.core_balsamjob VALUES ('2542b4cf-cc3e-4edc-bc6b-250f97383e0c', 'later', 'killed', '', '', '2026-11-30 21:23:16.803702+00', '[]', '*', '', '', '', 1, 1, 0, 1, 'depth', 1, 1, 1, '{}', 'say-hello', 'k', '', true, false, false, true, 'USER_KILLED', '        
[11-30-2026 21:23:16.798072 CREATED]     
[11-30-2026 21:23:16.804125 USER_KILLED] ', '{}', NULL);
INSERT INTO public.core_balsamjob VALUES ('645b44ae-e2f2-4adf-970c-cca24819566e', 'later', 'running', '', 'thetamom1:1234', '2026-11-30 21:23:36.902019+00', '[]', '*', '', '', '', 1, 1, 0, 1, 'depth', 1, 1, 1, '{}', 'gone', 'r', '', true, false, false, true, 'RUNNING', '        
[11-30-2026 21:23:36.822639 CREATED]         
[11-30-2026 21:23:36.911775 RUNNING] Not scheduled by service', '{}', NULL);
INSERT INTO public.core_balsamjob VALUES ('211fc4fe-59aa-4f33-856c-820fecc501f5', 'fits', 'broken', '', '', '2026-11-30 21:22:23.429649+00', '[]', '*', '', '', '', 1, 1, 0, 1, 'none', 1, 1, 1, '', 'fail', 'x', '', true, false, false, true, 'FAILED', '        
[11-30-2026 21:22:07.757230 CREATED]    
[11-30-2026 21:22:18.378759 PREPROCESSED]         
[11-30-2026 21:22:21.669202 RUNNING] Not scheduled by service      
[11-30-2026 21:22:21.728121 RUN_ERROR]     ls: cannot access ''/nowhere'': No such file or directory
    ls: cannot access ''x'': No such file or directory
             
[11-30-2026 21:22:23.436334 FAILED]   
[11-30-2026 21:23:36.942437 RESTART_READY] User mutated state from command line        
[11-30-2026 21:23:36.947641 RUNNING] Batch Scheduler ID: 4711    
[11-30-2026 21:23:36.958660 RUN_TIMEOUT] timed out in MPI Ensemble         
[11-30-2026 21:23:36.959950 FAILED] ', '{}', NULL);
INSERT INTO public.core_balsamjob VALUES ('13c9fd6d-ccf8-4286-a296-dd84eba8ea7d', 'later', 'dangling', '', '', '2026-11-30 21:23:36.984262+00', '["00000000-0000-4000-8000-000000000000"]', '*', '', '', '', 1, 1, 0, 1, 'depth', 1, 1, 1, '{}', 'say-hello', 'd', '', true, false, false, true, 'CREATED', '        
[11-30-2026 21:23:36.972221 CREATED] ', '{}', NULL);
INSERT INTO public.core_balsamjob VALUES ('d98b710b-9d94-4d99-8fd6-64053c41fcb3', 'test', 'test2', '', '', '2026-11-30 21:22:22.764117+00', '[]', '*', '', '', '', 1, 1, 0, 1, 'none', 1, 1, 1, 'OMP_NUM_THREADS=4:TOKEN=abc', 'say-hello', 'again', '', true, false, false, true, 'JOB_FINISHED', '        
[11-30-2026 21:22:04.772458 CREATED]    
[11-30-2026 21:22:17.713830 PREPROCESSED]         
[11-30-2026 21:22:19.659787 RUNNING] Not scheduled by service       
[11-30-2026 21:22:19.688641 RUN_DONE]    
[11-30-2026 21:22:22.772371 JOB_FINISHED] ', '{}', NULL);
INSERT INTO public.core_balsamjob VALUES ('0d87fcfd-7492-4d8e-8f44-abbc77113ad1', 'test', 'test1', '', '', '2026-11-30 21:22:23.429649+00', '[]', '*', '', '', '', 1, 1, 0, 1, 'none', 1, 1, 1, '', 'say-hello', 'world!', '', true, false, false, true, 'JOB_FINISHED', '        
[11-30-2026 21:22:03.377243 CREATED]    
[11-30-2026 21:22:18.378759 PREPROCESSED]         
[11-30-2026 21:22:20.652824 RUNNING] Not scheduled by service       
[11-30-2026 21:22:20.668638 RUN_DONE]    
[11-30-2026 21:22:23.443700 JOB_FINISHED] ', '{}', NULL);
INSERT INTO public.core_balsamjob VALUES ('ac9247b5-2e7d-4c79-9467-0666f7e22b9d', 'fits', 'my fit', '', '', '2026-11-30 21:22:23.267308+00', '[]', '*', '', '', '', 5, 1, 0, 1, 'none', 1, 1, 1, '', 'fit', 'exit', '', true, false, false, true, 'JOB_FINISHED', '        
[11-30-2026 21:22:06.211507 CREATED]    
[11-30-2026 21:22:18.195671 PREPROCESSED]         
[11-30-2026 21:22:18.681837 RUNNING] Not scheduled by service       
[11-30-2026 21:22:18.703074 RUN_DONE]   
[11-30-2026 21:22:23.344820 POSTPROCESSED]    
[11-30-2026 21:22:24.355806 JOB_FINISHED] ', '{}', NULL);
INSERT INTO public.core_balsamjob VALUES ('3acb76e1-4af3-4b20-99d0-05d3494a8f9a', 'fits', 'orphan', '', '', '2026-11-30 21:22:28.376294+00', '["211fc4fe-59aa-4f33-856c-820fecc501f5"]', '*', '', '', '', 1, 1, 0, 1, 'none', 1, 1, 1, '', 'say-hello', 'o', '', true, false, false, true, 'FAILED', '        
[11-30-2026 21:22:10.485457 CREATED] 
[11-30-2026 21:22:18.188301 AWAITING_PARENTS]          
[11-30-2026 21:22:28.395852 FAILED] One or more parent jobs failed', '{}', NULL);
INSERT INTO public.core_balsamjob VALUES ('ad825898-0d76-4c35-8c4f-1dd87caf6aed', 'fits', 'child', '', '', '2026-11-30 21:22:33.528607+00', '["ac9247b5-2e7d-4c79-9467-0666f7e22b9d"]', '*', '', '', '', 1, 1, 0, 1, 'none', 1, 1, 1, '', 'say-hello', 'child', '', true, false, false, true, 'JOB_FINISHED', '        
[11-30-2026 21:22:07.064040 CREATED] 
[11-30-2026 21:22:18.200898 AWAITING_PARENTS]           
[11-30-2026 21:22:28.436842 READY]       
[11-30-2026 21:22:28.448968 STAGED_IN]    
[11-30-2026 21:22:29.455959 PREPROCESSED]         
[11-30-2026 21:22:29.662244 RUNNING] Not scheduled by service       
[11-30-2026 21:22:29.677268 RUN_DONE]    
[11-30-2026 21:22:33.568652 JOB_FINISHED] ', '{}', NULL);


--
-- Data for Name: core_queuedlaunch; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.core_queuedlaunch VALUES (1, 4711, 'materials', 'debug', 2, 30, 'mpi', '', '/db/qsubmit/qlaunch1.sh', 'queued', true, true);


--
-- Name: core_applicationdefinition_id_seq; Type: SEQUENCE SET; Schema: public; Owner: -
--

SELECT pg_catalog.setval('public.core_applicationdefinition_id_seq', 3, true);


--
-- Name: core_queuedlaunch_id_seq; Type: SEQUENCE SET; Schema: public; Owner: -
--

SELECT pg_catalog.setval('public.core_queuedlaunch_id_seq', 1, true);


--
-- Name: core_applicationdefinition core_applicationdefinition_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.core_applicationdefinition
    ADD CONSTRAINT core_applicationdefinition_pkey PRIMARY KEY (id);


--
-- Name: core_balsamjob core_balsamjob_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.core_balsamjob
    ADD CONSTRAINT core_balsamjob_pkey PRIMARY KEY (job_id);


--
-- Name: core_queuedlaunch core_queuedlaunch_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.core_queuedlaunch
    ADD CONSTRAINT core_queuedlaunch_pkey PRIMARY KEY (id);


--
-- Name: core_balsamjob_lock_90403fe9; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX core_balsamjob_lock_90403fe9 ON public.core_balsamjob USING btree (lock);


--
-- Name: core_balsamjob_lock_90403fe9_like; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX core_balsamjob_lock_90403fe9_like ON public.core_balsamjob USING btree (lock text_pattern_ops);


--
-- Name: core_balsamjob_num_nodes_f4c197c5; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX core_balsamjob_num_nodes_f4c197c5 ON public.core_balsamjob USING btree (num_nodes);


--
-- Name: core_balsamjob_queued_launch_id_4eb1990f; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX core_balsamjob_queued_launch_id_4eb1990f ON public.core_balsamjob USING btree (queued_launch_id);


--
-- Name: core_balsamjob_state_a7e27ece; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX core_balsamjob_state_a7e27ece ON public.core_balsamjob USING btree (state);


--
-- Name: core_balsamjob_state_a7e27ece_like; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX core_balsamjob_state_a7e27ece_like ON public.core_balsamjob USING btree (state text_pattern_ops);


--
-- Name: core_queuedlaunch_scheduler_id_6c9fd020; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX core_queuedlaunch_scheduler_id_6c9fd020 ON public.core_queuedlaunch USING btree (scheduler_id);


--
-- Name: core_balsamjob core_balsamjob_queued_launch_id_4eb1990f_fk_core_queu; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.core_balsamjob
    ADD CONSTRAINT core_balsamjob_queued_launch_id_4eb1990f_fk_core_queu FOREIGN KEY (queued_launch_id) REFERENCES public.core_queuedlaunch(id) DEFERRABLE INITIALLY DEFERRED;


--
-- PostgreSQL database dump complete
--

\unrestrict p0VkgQqjBF4tHUDiK5PmOGDnDzne64RCB3f4hvigYUACXNOEBIFE8CMWlgDpewp

