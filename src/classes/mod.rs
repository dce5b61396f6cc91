//! One file per class that JavaScript sees.

mod cancellation;
mod event_handler;
mod health_monitor;
mod infinization;
mod qmp_client;

use cancellation::Cancellation;
use infinization::Infinization;
