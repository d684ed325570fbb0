//! Guards: engines that are said to be ready and are not.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Asks for the metadata of a topic and returns the topic's error code.
async fn error_of_topic(bootstrap: &str, topic: &str) -> i16 {
    let mut stream = tokio::net::TcpStream::connect(bootstrap).await.unwrap();
    // Metadata, version 4: header version 1, one topic, no automatic creation.
    let mut request = vec![0, 3, 0, 4, 0, 0, 0, 7, 0xff, 0xff, 0, 0, 0, 1];
    request.extend(u16::try_from(topic.len()).unwrap().to_be_bytes());
    request.extend(topic.as_bytes());
    request.push(0);
    stream.write_all(&u32::try_from(request.len()).unwrap().to_be_bytes()).await.unwrap();
    stream.write_all(&request).await.unwrap();
    let length = stream.read_u32().await.unwrap();
    let mut answer = vec![0; length as usize];
    stream.read_exact(&mut answer).await.unwrap();
    // The topic stands last: error code, name with its length, internal flag, number of partitions.
    let at = answer.len() - 4 - 1 - topic.len() - 2 - 2;
    i16::from_be_bytes([answer[at], answer[at + 1]])
}

#[tokio::test]
async fn the_shared_broker_answers_and_makes_no_topics_by_itself() {
    let Some(bootstrap) = engines::testing::kafka().await else { return };
    const UNKNOWN_TOPIC_OR_PARTITION: i16 = 3;
    assert_eq!(error_of_topic(&bootstrap, "nobody-created-this").await, UNKNOWN_TOPIC_OR_PARTITION);
}

#[tokio::test]
async fn the_shared_clickhouse_answers() {
    let Some(url) = engines::testing::clickhouse().await else { return };
    let answer = reqwest::get(format!("{url}/?query=SELECT%201")).await.unwrap().text().await.unwrap();
    assert_eq!(answer, "1\n");
}
