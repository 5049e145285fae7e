import type { ServeLog } from "../../serve/context.js";

/**
 * Opens the log of `serve` on standard error. It has one JSON object per line, as pino writes it, or plain lines on a
 * terminal. A closed standard error does not end `serve`.
 */
export async function openServeLog(): Promise<ServeLog> {
  process.stderr.on("error", () => undefined);
  if (process.stderr.isTTY) {
    return (level, message, fields = {}) => {
      const shown = Object.entries(fields).map(([name, value]) => ` ${name}=${JSON.stringify(value)}`);
      process.stderr.write(`${new Date().toISOString()} ${level.padEnd(5)} ${message}${shown.join("")}\n`);
    };
  }
  const { default: pino } = await import("pino");
  const logger = pino(
    {
      base: { pid: process.pid },
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
    },
    process.stderr,
  );
  return (level, message, fields = {}) => logger[level]({ ...fields }, message);
}
