import java.nio.ByteBuffer;
import java.util.SplittableRandom;
import java.util.zip.CRC32C;

/** What records hold: a number, random bytes that follow from it, and their checksum. */
final class Content {
    private static final int HEAD = Long.BYTES + Integer.BYTES;

    private Content() {}

    /** The record with a number, of a partition. */
    static byte[] of(int partition, long number, int size) {
        ByteBuffer record = ByteBuffer.allocate(Math.max(size, HEAD + Long.BYTES));
        SplittableRandom random = new SplittableRandom(number * 31 + partition);
        record.putLong(number).putInt(0);
        while (record.remaining() >= Long.BYTES) {
            record.putLong(random.nextLong());
        }
        record.putInt(Long.BYTES, checksum(record.array()));
        return record.array();
    }

    /** The number in a record; an error if it is not as it was made. */
    static long number(byte[] bytes) {
        if (bytes == null || bytes.length < HEAD) {
            throw new IllegalStateException("a record that nobody wrote");
        }
        ByteBuffer record = ByteBuffer.wrap(bytes);
        long number = record.getLong();
        if (record.getInt() != checksum(bytes)) {
            throw new IllegalStateException("record " + number + " is not as it was written");
        }
        return number;
    }

    private static int checksum(byte[] record) {
        CRC32C checksum = new CRC32C();
        checksum.update(record, 0, Long.BYTES);
        checksum.update(record, HEAD, record.length - HEAD);
        return (int) checksum.getValue();
    }
}
