-- Removes the roles and memberships that 0002_roles.up.sql made, except those still in use anywhere in the cluster.
--
-- Who may run it: a superuser, or a role that may drop them.
-- Locks:          none.
-- Undo:           0002_roles.up.sql; rights granted to the roles have to be granted again.

select rowcast.retire(2);
