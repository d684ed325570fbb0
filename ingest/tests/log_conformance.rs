//! Guards promise 2, "nothing lost": what an event log must do, whichever it is. One suite runs on the local log and on
//! Apache Kafka; what only one of them can show follows in modules of its own.

mod log;

use log::kafka::KafkaHarness;
use log::local::LocalHarness;
use log::suite;

/// Makes one test per implementation of each rule.
macro_rules! conformance {
    ($($rule:ident),+ $(,)?) => {
        mod local_log {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $rule() {
                super::suite::$rule(&super::LocalHarness::new()).await;
            })+
        }
        mod kafka_log {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $rule() {
                if let Some(harness) = super::KafkaHarness::new().await {
                    super::suite::$rule(&harness).await;
                }
            })+
        }
    };
}

conformance!(
    an_open_log_answers,
    records_of_a_partition_keep_their_order,
    a_batch_over_partitions_is_answered_record_by_record,
    concurrent_appenders_get_each_offset_once,
    a_reader_waits_and_wakes,
    a_new_reader_of_a_partition_replaces_the_one_before,
    an_abandoned_read_loses_no_record,
    records_outlive_the_process_that_appended_them,
    a6_offset_out_of_range_never_resets,
    a_record_for_no_partition_is_refused,
);
