import java.time.Duration;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;

/** A thread that reads every partition from where it ends when this begins. */
final class Consumers implements AutoCloseable {
    private static final long LIMIT_MS = 120_000;
    private static final long PAUSE_MS = 50;

    private final KafkaConsumer<byte[], byte[]> consumer;
    private final Gaps gaps;
    private final Map<TopicPartition, Long> seen = new HashMap<>();
    private final Thread thread = new Thread(this::read, "reads");
    private volatile boolean isStopped;
    private volatile RuntimeException failure;

    Consumers(String servers, List<TopicPartition> partitions, Gaps gaps) {
        this.gaps = gaps;
        consumer = new KafkaConsumer<>(Clients.consumer(servers));
        consumer.assign(partitions);
        consumer.seekToEnd(partitions);
        partitions.forEach(consumer::position);
        thread.setDaemon(true);
        thread.start();
    }

    private void read() {
        try {
            while (!isStopped) {
                for (var record : consumer.poll(Duration.ofMillis(100))) {
                    var partition = new TopicPartition(record.topic(), record.partition());
                    long number = Content.number(record.value());
                    gaps.event(partition);
                    synchronized (seen) {
                        seen.merge(partition, number, Math::max);
                    }
                }
            }
        } catch (RuntimeException error) {
            failure = error;
        }
    }

    /** Waits until it has read up to these numbers. */
    void waitFor(Map<TopicPartition, Long> last) {
        long begin = System.currentTimeMillis();
        while (!hasSeen(last)) {
            if (failure != null) {
                throw failure;
            }
            if (System.currentTimeMillis() - begin > LIMIT_MS) {
                throw new IllegalStateException("what was acknowledged can't be read");
            }
            Report.pause(PAUSE_MS);
        }
    }

    private boolean hasSeen(Map<TopicPartition, Long> last) {
        synchronized (seen) {
            return last.entrySet().stream()
                    .allMatch(e -> seen.getOrDefault(e.getKey(), -1L) >= e.getValue());
        }
    }

    @Override
    public void close() {
        isStopped = true;
        Report.join(thread);
        consumer.close();
    }
}
