import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.management.ManagementFactory;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Properties;
import java.util.stream.Stream;
import javax.management.InstanceNotFoundException;
import javax.management.JMException;
import javax.management.MBeanServer;
import javax.management.ObjectName;

/**
 * One Kafka broker: the entry point of its container. Formats its directory if that is empty, then
 * runs Kafka, and tells on standard output what it began with and how much it took from others.
 *
 * <p>Arguments: the id of the Kafka cluster, then properties of the broker as {@code key=value}.
 */
final class Broker {
    private static final long PAUSE_MS = 200;
    private static final String REPLICATED =
            "kafka.server:type=BrokerTopicMetrics,name=ReplicationBytesInPerSec";

    private Broker() {}

    public static void main(String[] arguments) throws IOException {
        Properties properties = new Properties();
        for (int i = 1; i < arguments.length; i++) {
            String[] pair = arguments[i].split("=", 2);
            if (pair.length != 2) {
                throw new IllegalArgumentException("not key=value: " + arguments[i]);
            }
            properties.setProperty(pair[0], pair[1]);
        }
        Path logs = Path.of(properties.getProperty("log.dirs"));
        boolean isFresh = !Files.exists(logs.resolve("meta.properties"));
        Report.line("began", "fresh", isFresh, "held_bytes", size(logs));
        Path file = Files.createTempFile("broker", ".properties");
        try (var out = Files.newOutputStream(file)) {
            properties.store(out, null);
        }
        if (isFresh) {
            format(arguments[0], file);
        }
        Thread teller = new Thread(Broker::tell, "figures");
        teller.setDaemon(true);
        teller.start();
        kafka.Kafka.main(new String[] {file.toString()});
    }

    private static void format(String cluster, Path file) {
        // A format that was cut off is done again.
        List<String> words = new ArrayList<>(List.of("format", "--ignore-formatted"));
        words.addAll(List.of("--cluster-id", cluster, "--config", file.toString()));
        int status = kafka.tools.StorageTool.execute(words.toArray(new String[0]), System.err);
        if (status != 0) {
            throw new IllegalStateException("the directory could not be formatted");
        }
    }

    /** Tells how many bytes came from other brokers, as often as that changes. */
    private static void tell() {
        MBeanServer server = ManagementFactory.getPlatformMBeanServer();
        long last = 0;
        while (true) {
            try {
                ObjectName name = new ObjectName(REPLICATED);
                long now = (Long) server.getAttribute(name, "Count");
                if (now != last) {
                    Report.line("replicated", "bytes", now);
                    last = now;
                }
            } catch (InstanceNotFoundException notYet) {
                // The first byte makes it.
            } catch (JMException error) {
                throw new IllegalStateException(error);
            }
            Report.pause(PAUSE_MS);
        }
    }

    private static long size(Path directory) throws IOException {
        if (!Files.exists(directory)) {
            return 0;
        }
        try (Stream<Path> files = Files.walk(directory)) {
            return files.filter(f -> f.toString().endsWith(".log")).mapToLong(Broker::bytes).sum();
        }
    }

    private static long bytes(Path file) {
        try {
            return Files.size(file);
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
    }
}
