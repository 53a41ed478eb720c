import java.io.BufferedWriter;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.HashMap;
import java.util.Map;
import java.util.stream.Stream;
import org.apache.kafka.common.TopicPartition;

/** What was acknowledged: a file of lines "topic partition number milliseconds". */
final class Ledger implements AutoCloseable {
    private final BufferedWriter file;
    private final Map<TopicPartition, Long> last;
    private long count;

    /** Goes on with the file, if there is one. */
    Ledger(Path path) throws IOException {
        last = lastIn(path);
        file = Files.newBufferedWriter(path, StandardOpenOption.CREATE, StandardOpenOption.APPEND);
    }

    synchronized void acknowledged(TopicPartition partition, long number) {
        try {
            file.write(partition.topic() + ' ' + partition.partition() + ' ' + number + ' '
                    + System.currentTimeMillis() + '\n');
        } catch (IOException error) {
            // Without it nobody knows what may be missed later.
            System.err.println("the ledger can't be written: " + error);
            Runtime.getRuntime().halt(1);
        }
        last.merge(partition, number, Math::max);
        count++;
    }

    /** The number after the last acknowledged one. */
    synchronized long next(TopicPartition partition) {
        return last.getOrDefault(partition, -1L) + 1;
    }

    synchronized Map<TopicPartition, Long> last() {
        return new HashMap<>(last);
    }

    /** How many were acknowledged since it was opened. */
    synchronized long count() {
        return count;
    }

    @Override
    public synchronized void close() throws IOException {
        file.close();
    }

    /** The highest number of each partition. */
    private static Map<TopicPartition, Long> lastIn(Path path) throws IOException {
        Map<TopicPartition, Long> last = new HashMap<>();
        read(path, (partition, number) -> last.merge(partition, number, Math::max));
        return last;
    }

    interface Each {
        void acknowledged(TopicPartition partition, long number);
    }

    static void read(Path path, Each each) throws IOException {
        if (!Files.exists(path)) {
            return;
        }
        try (Stream<String> lines = Files.lines(path)) {
            lines.forEach(line -> {
                String[] words = line.split(" ");
                TopicPartition partition =
                        new TopicPartition(words[0], Integer.parseInt(words[1]));
                each.acknowledged(partition, Long.parseLong(words[2]));
            });
        }
    }
}
