-- Removes the functions, the grants and the schema that 0003_auth.up.sql made. A function that a policy calls stays.
--
-- Who may run it: their owner.
-- Locks:          none on tables.
-- Undo:           0003_auth.up.sql.

select rowcast.retire(3);
