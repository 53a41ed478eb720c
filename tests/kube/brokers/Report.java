/** Lines of standard output that a program can read: flat JSON, with the time. */
final class Report {
    private Report() {}

    /** Prints an event, and pairs of names and values. */
    static synchronized void line(String event, Object... pairs) {
        StringBuilder line = new StringBuilder("{\"event\":\"").append(event);
        line.append("\",\"at_ms\":").append(System.currentTimeMillis());
        for (int i = 0; i < pairs.length; i += 2) {
            line.append(",\"").append(pairs[i]).append("\":");
            Object value = pairs[i + 1];
            boolean isBare = value instanceof Number || value instanceof Boolean;
            line.append(isBare ? value.toString() : "\"" + value + "\"");
        }
        System.out.println(line.append('}'));
        System.out.flush();
    }

    /** Waits for the end of a thread. */
    static void join(Thread thread) {
        try {
            thread.join();
        } catch (InterruptedException stopped) {
            Thread.currentThread().interrupt();
        }
    }

    /** A pause between two looks. */
    static void pause(long millis) {
        try {
            Thread.sleep(millis);
        } catch (InterruptedException stopped) {
            Thread.currentThread().interrupt();
        }
    }
}
