import java.io.IOException;
import java.nio.file.Path;
import java.time.Duration;
import java.util.BitSet;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;

/** Reads every record, and holds it against what was acknowledged. */
final class Verify {
    private static final long LIMIT_MS = 600_000;

    private final Map<TopicPartition, BitSet> held = new HashMap<>();
    private long read;
    private long doubled;
    private long disordered;
    private long damaged;

    private Verify() {}

    static boolean run(String servers, List<TopicPartition> partitions, Path ledger)
            throws IOException {
        Verify verify = new Verify();
        verify.read(servers, partitions);
        long[] counts = new long[2];
        Ledger.read(ledger, (partition, number) -> {
            counts[0]++;
            BitSet numbers = verify.held.get(partition);
            if (numbers == null || !numbers.get((int) number)) {
                counts[1]++;
            }
        });
        Report.line("verified", "acknowledged", counts[0], "lost", counts[1], "read", verify.read,
                "doubled", verify.doubled, "disordered", verify.disordered, "damaged",
                verify.damaged);
        if (counts[1] > 0) {
            System.err.println(counts[1] + " of " + counts[0] + " acknowledged records are lost");
        }
        return counts[0] > 0 && counts[1] == 0
                && verify.doubled + verify.disordered + verify.damaged == 0;
    }

    private void read(String servers, List<TopicPartition> partitions) {
        try (var consumer = new KafkaConsumer<byte[], byte[]>(Clients.consumer(servers))) {
            consumer.assign(partitions);
            consumer.seekToBeginning(partitions);
            Map<TopicPartition, Long> ends = consumer.endOffsets(partitions);
            long begin = System.currentTimeMillis();
            while (ends.entrySet().stream()
                    .anyMatch(e -> consumer.position(e.getKey()) < e.getValue())) {
                if (System.currentTimeMillis() - begin > LIMIT_MS) {
                    throw new IllegalStateException("the partitions can't be read to their ends");
                }
                consumer.poll(Duration.ofMillis(500)).forEach(this::take);
            }
        }
    }

    private void take(ConsumerRecord<byte[], byte[]> record) {
        read++;
        long number;
        try {
            number = Content.number(record.value());
        } catch (IllegalStateException error) {
            damaged++;
            return;
        }
        TopicPartition partition = new TopicPartition(record.topic(), record.partition());
        BitSet numbers = held.computeIfAbsent(partition, p -> new BitSet());
        if (numbers.get((int) number)) {
            doubled++;
        } else if (numbers.length() > number) {
            disordered++;
        }
        numbers.set((int) number);
    }
}
