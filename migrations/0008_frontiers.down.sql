-- Removes what devices have received: those that come back begin where the stream is.
--
-- Who may run it: the owner of schema `rowcast`.
-- Locks:          ACCESS EXCLUSIVE on Rowcast's own tables.
-- Undo:           0008_frontiers.up.sql; what the tables held is gone.

drop table rowcast.frontiers;
drop table rowcast.frontier_owners;
