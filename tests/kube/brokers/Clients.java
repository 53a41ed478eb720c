import java.util.Properties;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/** How clients are set up. */
final class Clients {
    private Clients() {}

    static Properties common(String servers) {
        Properties properties = new Properties();
        properties.setProperty("bootstrap.servers", servers);
        // A broker that is gone says nothing: ask another one soon.
        properties.setProperty("request.timeout.ms", "5000");
        properties.setProperty("socket.connection.setup.timeout.ms", "1000");
        properties.setProperty("socket.connection.setup.timeout.max.ms", "2000");
        properties.setProperty("metadata.max.age.ms", "5000");
        return properties;
    }

    /** A producer that gives up nothing: what it can't send is sent later, in order, and once. */
    static Properties producer(String servers) {
        Properties properties = common(servers);
        properties.setProperty("acks", "all");
        properties.setProperty("enable.idempotence", "true");
        properties.setProperty("delivery.timeout.ms", "600000");
        properties.setProperty("max.block.ms", "600000");
        properties.setProperty("linger.ms", "5");
        properties.setProperty("batch.size", "65536");
        properties.setProperty("buffer.memory", "33554432");
        properties.setProperty("key.serializer", ByteArraySerializer.class.getName());
        properties.setProperty("value.serializer", ByteArraySerializer.class.getName());
        return properties;
    }

    static Properties consumer(String servers) {
        Properties properties = common(servers);
        properties.setProperty("enable.auto.commit", "false");
        properties.setProperty("auto.offset.reset", "earliest");
        properties.setProperty("key.deserializer", ByteArrayDeserializer.class.getName());
        properties.setProperty("value.deserializer", ByteArrayDeserializer.class.getName());
        return properties;
    }
}
