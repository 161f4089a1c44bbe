-- Removes the event triggers that 0007_rule_hints.up.sql made, and their function. The relay goes on by polling.
--
-- Who may run it: their owner; if another runs it they stay, and are named.
-- Locks:          none on tables.
-- Undo:           0007_rule_hints.up.sql.

do $$
declare
    made   rowcast.installed;
    reason text;
begin
    update rowcast.installed set kept_because = null where migration = 7;
    for made in select * from rowcast.installed where migration = 7 order by id desc loop
        begin
            case made.kind
                when 'event trigger' then
                    -- One of that name that runs another function is not ours.
                    if exists (select from pg_catalog.pg_event_trigger t where t.evtname = made.identity
                               and t.evtfoid = to_regprocedure('rowcast.hint_rules()')) then
                        execute format('drop event trigger %I', made.identity);
                    end if;
                when 'function' then
                    execute 'drop function if exists rowcast.hint_rules()';
            end case;
            delete from rowcast.installed where id = made.id;
        exception when dependent_objects_still_exist or insufficient_privilege then
            get stacked diagnostics reason = message_text;
            update rowcast.installed set kept_because = reason where id = made.id;
        end;
    end loop;
end
$$;
