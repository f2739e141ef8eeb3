"""The SQL behind roles and the pooler's look-up of users. Constants only; postgres/roles.py runs them. Pure.

Three groups that nobody logs in as. Schema admins become their group on connect, so what one makes another may change;
default privileges hang on the group. An event trigger catches what is made otherwise: after SET ROLE NONE, or by users
of other kinds. `pg_read_all_data` is not used: it shows everybody's password verifiers.
"""

from __future__ import annotations

SCHEMA_ADMIN, WRITER, READER = "schema_admin", "writer", "reader"
POOLER = "flypg_pooler"  # whom PgBouncer looks users up as
MARK = "flypg 1"  # comment on the trigger: which version of all this a database has

GROUPS = """
DO $do$
DECLARE g text;
BEGIN
  FOREACH g IN ARRAY ARRAY['schema_admin', 'writer', 'reader'] LOOP
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = g) THEN
      EXECUTE format('CREATE ROLE %I NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION', g);
    END IF;
  END LOOP;
END $do$
"""
BAD_GROUPS = """
SELECT rolname FROM pg_roles WHERE rolname IN ('schema_admin', 'writer', 'reader')
   AND (rolcanlogin OR rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls)
"""

LOOKUP = """
CREATE SCHEMA IF NOT EXISTS flypg;
REVOKE ALL ON SCHEMA flypg FROM PUBLIC;
CREATE OR REPLACE FUNCTION flypg.user_lookup(wanted text, OUT uname text, OUT phash text) RETURNS record
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
$$ SELECT usename::text, CASE WHEN valuntil < now() THEN NULL ELSE passwd END FROM pg_catalog.pg_shadow
   WHERE usename = wanted AND usename NOT IN ('flypgadmin', 'repluser', 'flypg_pooler') $$;
REVOKE ALL ON FUNCTION flypg.user_lookup(text) FROM PUBLIC;
GRANT USAGE ON SCHEMA flypg TO flypg_pooler;
GRANT EXECUTE ON FUNCTION flypg.user_lookup(text) TO flypg_pooler;
"""
HAS_LOOKUP = "SELECT to_regprocedure('flypg.user_lookup(text)') IS NOT NULL"

# Who had rights through PUBLIC keeps them: only users that come later depend on the groups.
KEEP_OTHERS = """
DO $do$
DECLARE r record;
BEGIN
  FOR r IN SELECT rolname, has_database_privilege(oid, current_database(), 'CONNECT') AS may_connect,
                  has_database_privilege(oid, current_database(), 'TEMPORARY') AS may_temp,
                  has_schema_privilege(oid, 'public', 'USAGE') AS may_use,
                  has_schema_privilege(oid, 'public', 'CREATE') AS may_create
           FROM pg_roles
           WHERE rolcanlogin AND NOT rolsuper AND rolname <> 'flypg_pooler'
             AND NOT pg_has_role(oid, 'schema_admin', 'member') AND NOT pg_has_role(oid, 'writer', 'member')
             AND NOT pg_has_role(oid, 'reader', 'member')
  LOOP
    IF r.may_connect THEN
      EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), r.rolname);
    END IF;
    IF r.may_connect AND r.may_temp THEN
      EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO %I', current_database(), r.rolname);
    END IF;
    IF r.may_connect AND r.may_use THEN
      EXECUTE format('GRANT USAGE ON SCHEMA public TO %I', r.rolname);
    END IF;
    IF r.may_connect AND r.may_create THEN
      EXECUTE format('GRANT CREATE ON SCHEMA public TO %I', r.rolname);
    END IF;
  END LOOP;
END $do$
"""

ON_DATABASE = """
DO $do$
BEGIN
  EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
  EXECUTE format('GRANT CONNECT ON DATABASE %I TO schema_admin, writer, reader', current_database());
  EXECUTE format('GRANT CREATE, TEMPORARY ON DATABASE %I TO schema_admin', current_database());
END $do$
"""
POOLER_CONNECTS = "GRANT CONNECT ON DATABASE {} TO flypg_pooler"

IN_DATABASE = """
REVOKE ALL ON SCHEMA public FROM PUBLIC;
ALTER SCHEMA public OWNER TO schema_admin;
REVOKE EXECUTE ON FUNCTION lo_create(oid), lo_creat(integer), lo_from_bytea(oid, bytea) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION lo_create(oid), lo_creat(integer), lo_from_bytea(oid, bytea) TO schema_admin, writer;
ALTER DEFAULT PRIVILEGES FOR ROLE schema_admin GRANT USAGE ON SCHEMAS TO writer, reader;
ALTER DEFAULT PRIVILEGES FOR ROLE schema_admin GRANT SELECT ON TABLES TO reader;
ALTER DEFAULT PRIVILEGES FOR ROLE schema_admin GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO writer;
ALTER DEFAULT PRIVILEGES FOR ROLE schema_admin GRANT SELECT ON SEQUENCES TO reader;
ALTER DEFAULT PRIVILEGES FOR ROLE schema_admin GRANT USAGE, SELECT, UPDATE ON SEQUENCES TO writer;
DO $do$
DECLARE s name;
BEGIN
  FOR s IN SELECT nspname FROM pg_namespace
           WHERE nspname NOT LIKE 'pg\\_%' AND nspname NOT IN ('information_schema', 'flypg') LOOP
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO schema_admin, writer, reader', s);
    EXECUTE format('GRANT CREATE ON SCHEMA %I TO schema_admin', s);
    EXECUTE format('GRANT ALL ON ALL TABLES IN SCHEMA %I TO schema_admin', s);
    EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA %I TO reader', s);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA %I TO writer', s);
    EXECUTE format('GRANT ALL ON ALL SEQUENCES IN SCHEMA %I TO schema_admin', s);
    EXECUTE format('GRANT SELECT ON ALL SEQUENCES IN SCHEMA %I TO reader', s);
    EXECUTE format('GRANT USAGE, SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA %I TO writer', s);
  END LOOP;
END $do$;
"""

TRIGGER = """
CREATE OR REPLACE FUNCTION flypg.own_objects() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
DECLARE
  c record;
  kind text;
  owns bool := EXISTS (SELECT FROM pg_roles WHERE rolname = session_user AND NOT rolsuper
                       AND pg_has_role(oid, 'schema_admin', 'member'));
BEGIN
  FOR c IN SELECT * FROM pg_event_trigger_ddl_commands()
           WHERE NOT in_extension AND (command_tag LIKE 'CREATE%' OR command_tag = 'SELECT INTO')
             AND object_type IN ('table', 'view', 'materialized view', 'sequence', 'schema', 'function', 'procedure',
                                 'type')
  LOOP
    IF c.schema_name LIKE 'pg_temp%' OR c.schema_name = 'flypg' THEN
      CONTINUE;
    END IF;
    IF owns AND NOT (c.object_type = 'sequence' AND EXISTS (
         SELECT FROM pg_depend WHERE objid = c.objid AND deptype IN ('a', 'i') AND classid = 'pg_class'::regclass
            AND refclassid = 'pg_class'::regclass)) THEN  -- sequences of a column follow their table
      EXECUTE format('ALTER %s %s OWNER TO schema_admin', upper(c.object_type), c.object_identity);
    END IF;
    CASE c.object_type
      WHEN 'table', 'view', 'materialized view' THEN
        EXECUTE format('GRANT ALL ON TABLE %s TO schema_admin', c.object_identity);
        EXECUTE format('GRANT SELECT ON TABLE %s TO reader', c.object_identity);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON TABLE %s TO writer', c.object_identity);
      WHEN 'sequence' THEN
        EXECUTE format('GRANT ALL ON SEQUENCE %s TO schema_admin', c.object_identity);
        EXECUTE format('GRANT SELECT ON SEQUENCE %s TO reader', c.object_identity);
        EXECUTE format('GRANT USAGE, SELECT, UPDATE ON SEQUENCE %s TO writer', c.object_identity);
      WHEN 'schema' THEN
        EXECUTE format('GRANT CREATE, USAGE ON SCHEMA %s TO schema_admin', c.object_identity);
        EXECUTE format('GRANT USAGE ON SCHEMA %s TO reader, writer', c.object_identity);
      ELSE NULL;
    END CASE;
  END LOOP;
END $f$;
REVOKE ALL ON FUNCTION flypg.own_objects() FROM PUBLIC;
DROP EVENT TRIGGER IF EXISTS flypg_own_objects;
CREATE EVENT TRIGGER flypg_own_objects ON ddl_command_end EXECUTE FUNCTION flypg.own_objects();
"""
MARK_DATABASE = "COMMENT ON EVENT TRIGGER flypg_own_objects IS 'flypg 1'"
MARKED = """
SELECT coalesce((SELECT obj_description(oid, 'pg_event_trigger') FROM pg_event_trigger
                 WHERE evtname = 'flypg_own_objects'), '')
"""
MANAGED = "SELECT count(*) = 3 FROM pg_roles WHERE rolname IN ('schema_admin', 'writer', 'reader')"

# Databases whose own privileges are not as they should be: a database made from a template does not inherit them.
UNREADY = """
SELECT d.datname,
       NOT EXISTS (SELECT FROM aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a
                   WHERE a.grantee = 0 AND a.privilege_type = 'CONNECT')
       AND EXISTS (SELECT FROM aclexplode(d.datacl) a JOIN pg_roles r ON r.oid = a.grantee
                   WHERE r.rolname = 'reader' AND a.privilege_type = 'CONNECT') AS ready,
       EXISTS (SELECT FROM aclexplode(d.datacl) a JOIN pg_roles r ON r.oid = a.grantee
               WHERE r.rolname = 'flypg_pooler' AND a.privilege_type = 'CONNECT') AS pooled
FROM pg_database d WHERE d.datallowconn ORDER BY d.datname
"""

USERS = """
SELECT r.rolname AS name,
       CASE WHEN r.rolsuper THEN 'superuser'
            WHEN EXISTS (SELECT FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid
                         WHERE m.member = r.oid AND g.rolname = 'schema_admin') THEN
                 CASE WHEN r.rolinherit THEN 'schema-admin' ELSE 'app' END
            WHEN EXISTS (SELECT FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid
                         WHERE m.member = r.oid AND g.rolname = 'writer') THEN 'writer'
            WHEN EXISTS (SELECT FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid
                         WHERE m.member = r.oid AND g.rolname = 'reader') THEN 'reader'
            ELSE 'other' END AS role,
       (SELECT count(*) FROM pg_stat_activity a WHERE a.usesysid = r.oid)::int AS sessions,
       CASE WHEN NOT r.rolinherit THEN
         (SELECT array_agg(d.datname::text ORDER BY d.datname) FROM pg_database d
          WHERE NOT d.datistemplate AND EXISTS (SELECT FROM aclexplode(d.datacl) x
                                                WHERE x.grantee = r.oid AND x.privilege_type = 'CONNECT'))
       END AS databases
FROM pg_roles r WHERE r.rolcanlogin ORDER BY r.rolname
"""
DATABASES = """
SELECT d.datname AS name, pg_database_size(d.oid)::int8 AS bytes, pg_get_userbyid(d.datdba)::text AS owner,
       (SELECT count(*) FROM pg_stat_activity a WHERE a.datid = d.oid AND a.backend_type = 'client backend')::int
         AS sessions
FROM pg_database d WHERE NOT d.datistemplate ORDER BY d.datname
"""
