import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.TopicDescription;
import org.apache.kafka.common.Node;
import org.apache.kafka.common.TopicPartitionInfo;

/** Tells for each broker how many of its partitions it leads or follows in sync. */
final class Watcher implements AutoCloseable {
    private static final long PAUSE_MS = 100;
    private static final long LIMIT_MS = 60_000;

    private final Admin admin;
    private final List<String> topics;
    private final Thread thread = new Thread(this::watch, "watches");
    private volatile boolean isStopped;

    Watcher(String servers, List<String> topics) {
        this.admin = Admin.create(Clients.common(servers));
        this.topics = topics;
        thread.setDaemon(true);
        thread.start();
    }

    private void watch() {
        Map<Integer, int[]> last = new TreeMap<>();
        while (!isStopped) {
            try {
                Map<Integer, int[]> now = look(admin, topics);
                now.forEach((broker, seen) -> {
                    int[] before = last.put(broker, seen);
                    if (!Arrays.equals(before, seen)) {
                        Report.line("in_sync", "broker", broker, "in_sync", seen[0], "of", seen[1],
                                "leads", seen[2]);
                    }
                });
            } catch (ExecutionException | TimeoutException notNow) {
                // Whoever was asked is gone: the next look asks another.
            } catch (InterruptedException stopped) {
                return;
            }
            Report.pause(PAUSE_MS);
        }
    }

    /** For each broker: partitions in sync, partitions in all, partitions that it leads. */
    private static Map<Integer, int[]> look(Admin admin, List<String> topics)
            throws ExecutionException, TimeoutException, InterruptedException {
        Map<Integer, int[]> seen = new TreeMap<>();
        var told = admin.describeTopics(topics).allTopicNames().get(6, TimeUnit.SECONDS);
        for (TopicDescription topic : told.values()) {
            for (TopicPartitionInfo partition : topic.partitions()) {
                for (Node node : partition.replicas()) {
                    seen.computeIfAbsent(node.id(), id -> new int[3])[1]++;
                }
                for (Node node : partition.isr()) {
                    seen.computeIfAbsent(node.id(), id -> new int[3])[0]++;
                }
                if (partition.leader() != null) {
                    seen.computeIfAbsent(partition.leader().id(), id -> new int[3])[2]++;
                }
            }
        }
        return seen;
    }

    /** Waits until so many brokers are there; returns their ids in order. */
    static List<Integer> waitForBrokers(Admin admin, int count) throws Exception {
        long begin = System.currentTimeMillis();
        while (true) {
            List<Integer> ids = brokers(admin);
            if (ids.size() >= count) {
                return ids;
            }
            if (System.currentTimeMillis() - begin > LIMIT_MS) {
                throw new IllegalStateException("only the brokers " + ids + " are there");
            }
            Report.pause(PAUSE_MS);
        }
    }

    private static List<Integer> brokers(Admin admin) throws InterruptedException {
        try {
            var nodes = admin.describeCluster().nodes().get(6, TimeUnit.SECONDS);
            return nodes.stream().map(Node::id).sorted().toList();
        } catch (ExecutionException | TimeoutException notYet) {
            return List.of();
        }
    }

    /** Waits until every partition has a leader and all its replicas in sync. */
    static void waitUntilWhole(Admin admin, List<String> topics) throws Exception {
        long begin = System.currentTimeMillis();
        while (!isWhole(admin, topics)) {
            if (System.currentTimeMillis() - begin > LIMIT_MS) {
                throw new IllegalStateException("the topics do not become whole");
            }
            Report.pause(PAUSE_MS);
        }
    }

    private static boolean isWhole(Admin admin, List<String> topics) throws Exception {
        try {
            Map<Integer, int[]> seen = look(admin, topics);
            int leads = seen.values().stream().mapToInt(s -> s[2]).sum();
            return leads > 0 && seen.values().stream().allMatch(s -> s[0] == s[1]);
        } catch (ExecutionException | TimeoutException notYet) {
            return false;
        }
    }

    @Override
    public void close() {
        isStopped = true;
        Report.join(thread);
        admin.close();
    }
}
