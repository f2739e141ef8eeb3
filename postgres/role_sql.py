"""The SQL behind roles and the pooler's look-up of users. Constants only; postgres/roles.py runs them. Pure.

Three groups that nobody logs in as. Schema admins become their group on connect, so what one makes another may change;
default privileges hang on the group. An event trigger catches what is made otherwise: after SET ROLE NONE, or by users
of other kinds. `pg_read_all_data` is not used: it shows everybody's password verifiers.
"""

from __future__ import annotations

SCHEMA_ADMIN, WRITER, READER = "schema_admin", "writer", "reader"
POOLER = "flypg_pooler"  # whom PgBouncer looks users up as
MARK = "flypg 2"  # comment on the trigger: which version of all this a database has

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

# Nobody but superusers enters template1: one connection there, and CREATE DATABASE is refused.
ON_DATABASE = """
DO $do$
BEGIN
  EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
  IF current_database() = 'template1' THEN
    REVOKE ALL ON DATABASE template1 FROM schema_admin, writer, reader;
    RETURN;
  END IF;
  EXECUTE format('GRANT CONNECT ON DATABASE %I TO schema_admin, writer, reader', current_database());
  EXECUTE format('GRANT CREATE, TEMPORARY ON DATABASE %I TO schema_admin', current_database());
END $do$
"""
# The right that says that a database has the look-up; of template1 it is one that does not let the pooler in.
POOLER_CONNECTS = """
DO $do$
BEGIN
  IF current_database() = 'template1' THEN
    REVOKE CONNECT ON DATABASE template1 FROM flypg_pooler, PUBLIC;
    GRANT TEMPORARY ON DATABASE template1 TO flypg_pooler;
  ELSE
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO flypg_pooler', current_database());
  END IF;
END $do$
"""

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

# What belongs to flypg's own superusers, or to a schema admin, becomes the schema admins': who may alter and drop
# everything must own it. Not what would then do less, or lend a superuser's rights to whoever rewrites it: functions
# with their owner's rights, in languages that are not trusted, or of event triggers, and views of system catalogs.
# `postgres` is pinned, so nothing is noted of what it owns: no owner noted means the first superuser, whose id is 10.
TRIGGER = """
CREATE OR REPLACE FUNCTION flypg.adopt(class oid, object oid) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $f$
DECLARE
  o record;
  r record;
BEGIN
  SELECT rolname, rolsuper, pg_has_role(oid, 'schema_admin', 'member') AS admin INTO r
    FROM pg_roles WHERE oid = coalesce((SELECT refobjid FROM pg_shdepend
      WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND classid = class
        AND objid = object AND objsubid = 0 AND deptype = 'o'), 10);
  IF r.rolname = 'schema_admin' OR NOT (r.rolname IN ('postgres', 'flypgadmin') OR r.admin AND NOT r.rolsuper)
     OR EXISTS (SELECT FROM pg_depend WHERE classid = class AND objid = object AND (deptype = 'e'
                OR class = 'pg_class'::regclass AND deptype IN ('a', 'i') AND refclassid = 'pg_class'::regclass
                   AND EXISTS (SELECT FROM pg_class WHERE oid = object AND relkind = 'S')))  -- follows its table
     OR r.rolsuper AND class = 'pg_proc'::regclass AND EXISTS (SELECT FROM pg_proc p JOIN pg_language l
          ON l.oid = p.prolang WHERE p.oid = object AND (p.prosecdef OR p.prorettype = 'event_trigger'::regtype
                                                         OR l.lanname NOT IN ('sql', 'plpgsql', 'internal')
                                                         OR l.lanname = 'internal' AND p.prokind <> 'a'))
     OR r.rolsuper AND class = 'pg_class'::regclass AND EXISTS (SELECT FROM pg_class
          WHERE oid = object AND relkind IN ('v', 'm') AND pg_get_viewdef(oid) ~ '\\m(pg_|flypg)') THEN
    RETURN;
  END IF;
  SELECT * INTO o FROM pg_identify_object(class, object, 0);
  EXECUTE format('ALTER %s %s OWNER TO schema_admin',
                 CASE o.type WHEN 'statistics object' THEN 'STATISTICS' ELSE upper(o.type) END, o.identity);
END $f$;
CREATE OR REPLACE FUNCTION flypg.own_objects() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
DECLARE
  c record;
BEGIN
  FOR c IN SELECT * FROM pg_event_trigger_ddl_commands()
           WHERE NOT in_extension AND (command_tag LIKE 'CREATE%' OR command_tag = 'SELECT INTO')
             AND object_type IN ('table', 'view', 'materialized view', 'foreign table', 'sequence', 'schema',
                                 'function', 'procedure', 'aggregate', 'type', 'collation', 'operator',
                                 'statistics object', 'text search configuration', 'text search dictionary')
  LOOP
    IF c.schema_name LIKE 'pg_temp%' OR c.schema_name = 'flypg' THEN
      CONTINUE;
    END IF;
    PERFORM flypg.adopt(c.classid, c.objid);
    CASE c.object_type
      WHEN 'table', 'view', 'materialized view', 'foreign table' THEN
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
  -- ALTER … OWNER makes the rights of the owner before those of the new one: the schema admins' are given again.
  FOR c IN SELECT k.oid, k.relkind FROM pg_event_trigger_ddl_commands() d
           JOIN pg_class k ON (d.classid, d.objid) = ('pg_class'::regclass, k.oid) OR k.relkind = 'S' AND k.oid IN (
             SELECT objid FROM pg_depend WHERE classid = 'pg_class'::regclass AND deptype IN ('a', 'i')
                AND (refclassid, refobjid) = (d.classid, d.objid))
           WHERE d.command_tag LIKE 'ALTER%' AND k.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
             AND NOT EXISTS (SELECT FROM aclexplode(k.relacl) a WHERE a.grantee = 'schema_admin'::regrole)
             AND EXISTS (SELECT FROM aclexplode(k.relacl) a WHERE a.grantee = 'reader'::regrole)
  LOOP
    EXECUTE format('GRANT ALL ON %s %s TO schema_admin', CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END,
                   c.oid::regclass);
  END LOOP;
  FOR c IN SELECT n.nspname FROM pg_event_trigger_ddl_commands() d
           JOIN pg_namespace n ON (d.classid, d.objid) = ('pg_namespace'::regclass, n.oid)
           WHERE d.command_tag = 'ALTER SCHEMA'
             AND NOT EXISTS (SELECT FROM aclexplode(n.nspacl) a WHERE a.grantee = 'schema_admin'::regrole)
             AND EXISTS (SELECT FROM aclexplode(n.nspacl) a WHERE a.grantee = 'reader'::regrole)
  LOOP
    EXECUTE format('GRANT CREATE, USAGE ON SCHEMA %I TO schema_admin', c.nspname);
  END LOOP;
END $f$;
REVOKE ALL ON FUNCTION flypg.own_objects(), flypg.adopt(oid, oid) FROM PUBLIC;
DROP EVENT TRIGGER IF EXISTS flypg_own_objects;
CREATE EVENT TRIGGER flypg_own_objects ON ddl_command_end EXECUTE FUNCTION flypg.own_objects();
"""
# What was there before, of the same kinds.
ADOPT = """
DO $do$
DECLARE
  mine oid[] := ARRAY(SELECT oid FROM pg_namespace WHERE nspname NOT LIKE 'pg\\_%'
                      AND nspname NOT IN ('information_schema', 'flypg'));
BEGIN
  PERFORM flypg.adopt(class, oid) FROM (
    SELECT 'pg_namespace'::regclass AS class, oid FROM pg_namespace WHERE oid = ANY (mine)
    UNION ALL SELECT 'pg_class'::regclass, oid FROM pg_class
      WHERE relnamespace = ANY (mine) AND relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
    UNION ALL SELECT 'pg_type'::regclass, t.oid FROM pg_type t LEFT JOIN pg_class k ON k.oid = t.typrelid
      WHERE t.typnamespace = ANY (mine) AND (t.typtype IN ('d', 'e', 'r') OR k.relkind = 'c')
    UNION ALL SELECT 'pg_proc'::regclass, oid FROM pg_proc WHERE pronamespace = ANY (mine)
    UNION ALL SELECT 'pg_operator'::regclass, oid FROM pg_operator WHERE oprnamespace = ANY (mine)
    UNION ALL SELECT 'pg_collation'::regclass, oid FROM pg_collation WHERE collnamespace = ANY (mine)
    UNION ALL SELECT 'pg_statistic_ext'::regclass, oid FROM pg_statistic_ext WHERE stxnamespace = ANY (mine)
    UNION ALL SELECT 'pg_ts_config'::regclass, oid FROM pg_ts_config WHERE cfgnamespace = ANY (mine)
    UNION ALL SELECT 'pg_ts_dict'::regclass, oid FROM pg_ts_dict WHERE dictnamespace = ANY (mine)) AS found;
END $do$
"""
MARK_DATABASE = "COMMENT ON EVENT TRIGGER flypg_own_objects IS 'flypg 2'"
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
       AND (d.datname <> 'template1') = EXISTS (SELECT FROM aclexplode(d.datacl) a JOIN pg_roles r ON r.oid = a.grantee
                                                WHERE r.rolname = 'reader' AND a.privilege_type = 'CONNECT') AS ready,
       EXISTS (SELECT FROM aclexplode(d.datacl) a JOIN pg_roles r ON r.oid = a.grantee
               WHERE r.rolname = 'flypg_pooler'
                 AND a.privilege_type = CASE d.datname WHEN 'template1' THEN 'TEMPORARY' ELSE 'CONNECT' END) AS pooled
FROM pg_database d WHERE d.datallowconn
"""
UNREADY_HERE = f"{UNREADY} AND d.datname = current_database()"

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
       END AS databases,
       r.rolcanlogin AS login
FROM pg_authid r WHERE r.rolcanlogin OR r.rolpassword IS NOT NULL ORDER BY r.rolname
"""
MEMBER_OF = """
SELECT g.rolname, pg_get_userbyid(m.grantor) FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid
WHERE m.member = (SELECT oid FROM pg_roles WHERE rolname = %s)
"""
OWNED_DATABASES = "SELECT datname FROM pg_database d JOIN pg_roles r ON r.oid = d.datdba WHERE r.rolname = %s"
DATABASES = """
SELECT d.datname AS name, pg_database_size(d.oid)::int8 AS bytes, pg_get_userbyid(d.datdba)::text AS owner,
       (SELECT count(*) FROM pg_stat_activity a WHERE a.datid = d.oid AND a.backend_type = 'client backend')::int
         AS sessions
FROM pg_database d WHERE NOT d.datistemplate ORDER BY d.datname
"""
