-- Removes the role and the membership that 0005_filter_role.up.sql made, unless the role is in use anywhere in the cluster.
--
-- Who may run it: a superuser, or a role that may drop it.
-- Locks:          none.
-- Undo:           0005_filter_role.up.sql.

select rowcast.retire(5);
