mod delivery;
mod delivery_filters;
mod delivery_tables;
mod delivery_values;
mod rls;
mod subscribing;
