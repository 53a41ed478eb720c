import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.common.TopicPartition;

/**
 * The load on the brokers, and who judges them.
 *
 * <pre>
 * Load topics  makes the topics
 * Load fill    writes --bytes in all, as fast as it goes
 * Load run     writes and reads until the file --until is there, and tells who is in sync
 * Load verify  reads all, and says how many acknowledged records are not there
 * </pre>
 *
 * Every record has a number, counted per partition; whatever was acknowledged stands in a file of
 * {@code --ledger}, outside of the brokers.
 */
final class Load {
    private static final long PAUSE_MS = 100;

    private final Map<String, String> flags = new HashMap<>();

    private Load(String[] arguments) {
        for (int i = 1; i < arguments.length; i++) {
            String[] pair = arguments[i].split("=", 2);
            if (pair.length != 2 || !pair[0].startsWith("--")) {
                throw new IllegalArgumentException("not --name=value: " + arguments[i]);
            }
            flags.put(pair[0].substring(2), pair[1]);
        }
    }

    public static void main(String[] arguments) throws Exception {
        Load load = new Load(arguments);
        String wanted = arguments.length == 0 ? "nothing" : arguments[0];
        boolean isWell = switch (wanted) {
            case "topics" -> load.makeTopics();
            case "fill" -> load.fill();
            case "run" -> load.run();
            case "verify" -> Verify.run(load.servers(), load.partitions(), load.ledger());
            default -> throw new IllegalArgumentException("no command " + wanted);
        };
        System.exit(isWell ? 0 : 1);
    }

    private boolean makeTopics() throws Exception {
        List<NewTopic> topics = new ArrayList<>();
        try (Admin admin = Admin.create(Clients.common(servers()))) {
            List<Integer> brokers = Watcher.waitForBrokers(admin, (int) number("brokers"));
            int next = 0;
            for (String name : names()) {
                Map<Integer, List<Integer>> replicas = new HashMap<>();
                for (int i = 0; i < number("partitions"); i++) {
                    replicas.put(i, some(brokers, next++, (int) number("replication")));
                }
                topics.add(new NewTopic(name, replicas));
            }
            admin.createTopics(topics).all().get();
            Watcher.waitUntilWhole(admin, names());
        }
        Report.line("made", "topics", topics.size());
        return true;
    }

    /** So many brokers one after the other, so that each has as many partitions. */
    private static List<Integer> some(List<Integer> brokers, int first, int count) {
        List<Integer> chosen = new ArrayList<>();
        for (int i = 0; i < count; i++) {
            chosen.add(brokers.get((first + i) % brokers.size()));
        }
        return chosen;
    }

    private boolean fill() throws Exception {
        long begin = System.currentTimeMillis();
        long each = number("bytes") / partitions().size();
        int size = (int) number("record");
        try (Ledger ledger = new Ledger(ledger());
                Producers producers = new Producers(servers(), ledger, size)) {
            for (TopicPartition partition : partitions()) {
                producers.begin(partition, each / size, 0);
            }
            producers.join();
        }
        Report.line("filled", "bytes", each * partitions().size(), "seconds",
                (System.currentTimeMillis() - begin) / 1000.0);
        return true;
    }

    private boolean run() throws Exception {
        Gaps produced = new Gaps();
        Gaps consumed = new Gaps();
        try (Ledger ledger = new Ledger(ledger());
                Watcher ignored = new Watcher(servers(), names());
                Consumers consumers = new Consumers(servers(), partitions(), consumed);
                Producers producers = new Producers(servers(), ledger, (int) number("record"))) {
            producers.countGaps(produced);
            for (TopicPartition partition : partitions()) {
                producers.begin(partition, Long.MAX_VALUE, number("rate"));
            }
            Report.line("running");
            while (!Files.exists(Path.of(word("until")))) {
                Report.pause(PAUSE_MS);
            }
            producers.stop();
            producers.join();
            consumers.waitFor(ledger.last());
            Report.line("ran", "acknowledged", ledger.count(), "consumed", consumed.count(),
                    "producer_gap_ms", produced.longest(), "consumer_gap_ms", consumed.longest());
        }
        return true;
    }

    private String servers() {
        return word("servers");
    }

    private Path ledger() {
        return Path.of(word("ledger"));
    }

    private List<String> names() {
        List<String> names = new ArrayList<>();
        for (int i = 0; i < number("topics"); i++) {
            names.add(topic(i));
        }
        return names;
    }

    private List<TopicPartition> partitions() {
        List<TopicPartition> all = new ArrayList<>();
        for (String name : names()) {
            for (int i = 0; i < number("partitions"); i++) {
                all.add(new TopicPartition(name, i));
            }
        }
        return all;
    }

    private static String topic(int index) {
        return "t" + index;
    }

    private String word(String name) {
        String value = flags.get(name);
        if (value == null) {
            throw new IllegalArgumentException("--" + name + "= is missing");
        }
        return value;
    }

    private long number(String name) {
        return Long.parseLong(word(name));
    }
}
