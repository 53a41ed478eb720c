import java.util.HashMap;
import java.util.Map;
import org.apache.kafka.common.TopicPartition;

/** The longest time without an event of a partition. */
final class Gaps {
    private final Map<TopicPartition, Long> last = new HashMap<>();
    private long longest;
    private long count;

    synchronized void event(TopicPartition partition) {
        long now = System.nanoTime();
        Long before = last.put(partition, now);
        if (before != null) {
            longest = Math.max(longest, (now - before) / 1_000_000);
        }
        count++;
    }

    synchronized long longest() {
        return longest;
    }

    synchronized long count() {
        return count;
    }
}
