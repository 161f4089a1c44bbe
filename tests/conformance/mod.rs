mod subscribing;
mod delivery;
mod rls;
