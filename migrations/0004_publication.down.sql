-- Removes the publication that 0004_publication.up.sql made, unless it still publishes tables.
--
-- Who may run it: its owner.
-- Locks:          none.
-- Undo:           0004_publication.up.sql, and adding the tables again.

select rowcast.retire(4);
