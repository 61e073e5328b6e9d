-- A worker whose login is changed goes on with its row as soon as nobody has been heard of by it for as
-- long as a stranger has to wait to strike it off (30 s): until then it might be another's.
DROP POLICY own_update ON iov.worker;
CREATE POLICY own_update ON iov.worker FOR UPDATE
    USING (login IS NULL OR login = session_user
        OR clock_timestamp() - heartbeat_at >= interval '30 s')
    WITH CHECK (login IS NULL OR login = session_user);
