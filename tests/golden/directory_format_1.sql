BEGIN TRANSACTION;
CREATE TABLE directory (format INTEGER NOT NULL);
INSERT INTO "directory" VALUES(1);
CREATE TABLE session (
        session_id TEXT PRIMARY KEY,
        principal TEXT NOT NULL,
        worker_id TEXT,
        incarnation BIGINT,
        epoch BIGINT NOT NULL,
        checkpoint_id TEXT NOT NULL,
        sequence BIGINT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('creating', 'live', 'lost', 'ended')),
        auto_restore BOOLEAN NOT NULL,
        adhoc BOOLEAN NOT NULL,
        store_id TEXT NOT NULL,
        ended BIGINT
    );
INSERT INTO "session" VALUES('lost','p','one',1,1,'',-9223372036854775808,'lost',1,0,'store',NULL);
INSERT INTO "session" VALUES('creating','p','two',1,1,'',-9223372036854775808,'creating',1,0,'store',NULL);
INSERT INTO "session" VALUES('live','q','two',1,1,'c',9223372036854775807,'live',1,1,'store',NULL);
INSERT INTO "session" VALUES('released','p',NULL,NULL,1,'',-9223372036854775808,'live',1,0,'store',NULL);
INSERT INTO "session" VALUES('ended','p',NULL,NULL,1,'',-9223372036854775808,'ended',1,0,'store',1);
CREATE TABLE worker (
        worker_id TEXT PRIMARY KEY,
        start_id TEXT NOT NULL,
        incarnation BIGINT NOT NULL,
        beats BIGINT NOT NULL,
        dead BOOLEAN NOT NULL
    );
INSERT INTO "worker" VALUES('one','1',1,0,1);
INSERT INTO "worker" VALUES('two','1',1,0,0);
CREATE INDEX session_owner ON session (worker_id, incarnation, session_id);
CREATE INDEX session_principal ON session (principal, session_id);
CREATE INDEX session_live ON session (principal, session_id) WHERE state <> 'ended';
CREATE INDEX session_page ON session (session_id) WHERE state <> 'ended';
CREATE INDEX session_ended ON session (ended) WHERE ended IS NOT NULL;
COMMIT;
