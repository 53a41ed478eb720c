import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.locks.LockSupport;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;

/** One thread for each partition, which writes records in the order of their numbers. */
final class Producers implements AutoCloseable {
    private final KafkaProducer<byte[], byte[]> producer;
    private final Ledger ledger;
    private final int size;
    private final List<Thread> threads = new ArrayList<>();
    private Gaps gaps = new Gaps();
    private volatile boolean isStopped;

    Producers(String servers, Ledger ledger, int size) {
        this.producer = new KafkaProducer<>(Clients.producer(servers));
        this.ledger = ledger;
        this.size = size;
    }

    void countGaps(Gaps gaps) {
        this.gaps = gaps;
    }

    /** Begins to write at most {@code count} records, {@code rate} in a second (0: no limit). */
    void begin(TopicPartition partition, long count, long rate) {
        Thread thread = new Thread(() -> write(partition, count, rate), "writes " + partition);
        thread.setDaemon(true);
        threads.add(thread);
        thread.start();
    }

    private void write(TopicPartition partition, long count, long rate) {
        long first = ledger.next(partition);
        long begin = System.nanoTime();
        for (long i = 0; i < count && !isStopped; i++) {
            long number = first + i;
            byte[] content = Content.of(partition.partition(), number, size);
            producer.send(
                    new ProducerRecord<>(partition.topic(), partition.partition(), null, content),
                    (where, error) -> answered(partition, number, error));
            if (rate > 0) {
                long due = begin + (i + 1) * TimeUnit.SECONDS.toNanos(1) / rate;
                LockSupport.parkNanos(due - System.nanoTime());
            }
        }
    }

    private void answered(TopicPartition partition, long number, Exception error) {
        if (error == null) {
            gaps.event(partition);
            ledger.acknowledged(partition, number);
        } else {
            Report.line("refused", "partition", partition, "number", number, "error",
                    error.getClass().getSimpleName());
        }
    }

    void stop() {
        isStopped = true;
    }

    /** Waits until all that was begun is written and answered. */
    void join() throws InterruptedException {
        for (Thread thread : threads) {
            thread.join();
        }
        producer.flush();
    }

    @Override
    public void close() {
        producer.close();
    }
}
