import { createHmac, randomBytes, timingSafeEqual } from "node:crypto";
import {
  closeSync,
  constants,
  existsSync,
  fstatSync,
  futimesSync,
  openSync,
  readFileSync,
  statSync,
  writeSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { systemCode } from "../../base/errors.js";
import { ifThere, readAt } from "../../base/if-there.js";
import { limitTexts, notRestricted, type SandboxReport } from "../../base/sandbox.js";
import type { ServerRecord } from "../../base/server.js";
import { printable } from "../../base/values/text.js";
import { logPath, replaceServerFile, writing } from "./server-folder.js";

const LAST_WORDS_BYTES = 2_000;
const NEWLINE = 10;
const { O_APPEND, O_NOFOLLOW, O_NONBLOCK, O_RDWR } = constants;

/** A line that begins with its time. The runtime (1.0.85) prints no times, but other versions may do so. */
const TIMED_LINE = /^\[?(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z)\]? /;
/** The first line of a launch. */
const LAUNCH_LINE = /^[\d-]+T[\d:.]+Z \[copilotfleet\] Launch /;
/** The part of {@link launchText} that names what is not restricted. */
export const NOT_RESTRICTED: RegExp =
  /(?<=, )without a sandbox|(?<=; )[a-z-]+: (?:open|unlimited)(?:, [a-z-]+: (?:open|unlimited))*/;
/** The line that `native/nodelay.c` prints in a runtime whose connections will have TCP_NODELAY. */
const NO_DELAY = "copilotfleet: TCP_NODELAY is set";
/** Every healthy runtime prints these lines when it starts, so they do not help to explain a failure. */
const ANNOUNCEMENT = new RegExp(`^(?:CLI server listening on port \\d+|${NO_DELAY})$`);

/** The size of a server's log in bytes; 0 if it has no log. The output of the next launch begins at this offset. */
export function logSize(home: string): number {
  return statSync(logPath(home), { throwIfNoEntry: false })?.size ?? 0;
}

interface LaunchFacts {
  port: number;
  runtimePath: string;
  sandbox: SandboxReport;
}

/** The text of the line that the fleet writes to the log at the beginning of a launch. */
export function launchText({ port, runtimePath, sandbox }: LaunchFacts): string {
  const { mode, not, network, limits } = sandbox;
  const within = mode === "none" ? "without a sandbox" : `in the sandbox ${mode}`;
  const open = mode === "none" || not.length === 0 ? "" : `; ${notRestricted(not)}`;
  const reaching = network === undefined ? "" : `; network: ${network}`;
  const limited = limits === undefined ? "" : `; limits by ${limits.by}: ${limitTexts(limits).join(", ")}`;
  return `Launch on port ${port} by process ${process.pid} (${runtimePath}, ${within}${open}${reaching}${limited}).`;
}

/**
 * Adds a line of the fleet to an open log. Does not fail on a full disk, because a log must not stop a server.
 *
 * @param fd open for reading and for appending
 */
export function appendLine(fd: number, text: string, key: LogKey | null, at = new Date()): void {
  try {
    const { size } = fstatSync(fd);
    const gap = size > 0 && readAt(fd, size - 1, 1)[0] !== NEWLINE ? "\n" : "";
    const line = signedLine(`${at.toISOString()} [copilotfleet] ${printable(text)}`, key);
    writeSync(fd, `${gap}${line}\n`);
  } catch (error) {
    if (systemCode(error) === undefined) throw error;
  }
}

/**
 * Adds a line of the fleet to the log of a server, if it has one. The caller must hold the claim on the server.
 * Otherwise, the process that holds the claim could kill the caller, because a process that has the log open for
 * writing counts as the server itself.
 *
 * @param at when the event happened. Null for an unknown time in the past.
 */
export function appendToLog(home: string, text: string, at: Date | null = new Date()): void {
  try {
    const fd = openSync(logPath(home), O_RDWR | O_APPEND | O_NOFOLLOW | O_NONBLOCK);
    try {
      const before = fstatSync(fd);
      if (!before.isFile()) return;
      appendLine(fd, text, readLogKey(logPath(home)), at ?? new Date());
      // Keep the log's time: sessions/gc/unused-servers.ts takes it for the time when the server was last used.
      futimesSync(fd, before.atime, new Date(Math.round(Math.max(before.mtimeMs, at?.getTime() ?? 0))));
    } finally {
      closeSync(fd);
    }
  } catch (error) {
    if (systemCode(error) === undefined) throw error;
  }
}

/**
 * The time at the beginning of a line, ISO 8601 in UTC. Null for a line without a time, such as the lines of the
 * runtime.
 */
export function timeOfLine(line: string): string | null {
  return TIMED_LINE.exec(line)?.[1] ?? null;
}

export function withoutTime(line: string): string {
  return line.replace(TIMED_LINE, "");
}

/** The port of the last launch in a server's log. Null if the log names none. */
export function portOfLaunch(home: string): number | null {
  const text = ifThere(() => readFileSync(logPath(home), "utf8")) ?? "";
  const key = readLogKey(logPath(home));
  const launch = text.split("\n").findLast((line) => isLaunchLine(lineOfFleet(line, key) ?? ""));
  const [, port] = / Launch on port (\d+) /.exec(launch ?? "") ?? [];
  return port === undefined ? null : Number(port);
}

/** Whether this line of the fleet is the first line of a launch. */
export function isLaunchLine(line: string): boolean {
  return LAUNCH_LINE.test(line);
}

/**
 * The end of a server's output, as one line. Ignores the first `from` bytes of its log, unless the log is now shorter
 * because it was rotated.
 */
export function lastWords(home: string, from = 0): string {
  return inOneLine(lastLines(home, from));
}

/** The end of the current launch's output, as the second half of a message. Empty if that output explains nothing. */
export function endOfLog({ home, logStart }: Pick<ServerRecord, "home" | "logStart">): string {
  const words = inOneLine(lastLines(home, logStart ?? 0).filter((line) => !ANNOUNCEMENT.test(line)));
  return words === "" ? "" : `; the end of its log: ${words}`;
}

/** Whether the runtime of the current launch, which has just begun to listen, sends without Nagle's delay. */
export function sendsWithoutDelay({ home, logStart }: Pick<ServerRecord, "home" | "logStart">): boolean {
  return lastLines(home, logStart ?? 0).includes(NO_DELAY);
}

function lastLines(home: string, from: number): string[] {
  const fd = ifThere(() => openSync(logPath(home), "r"));
  if (fd === null) return []; // the server has no log
  try {
    const { size } = fstatSync(fd);
    const begin = from > size ? 0 : from;
    const start = Math.max(begin, size - LAST_WORDS_BYTES);
    const lines = readAt(fd, start, Math.max(0, size - start))
      .toString("utf8")
      .split("\n");
    // The first line may lack its beginning. If the fleet wrote it, `lineOfFleet` would not recognize it.
    const whole = start > begin && lines.length > 1 ? lines.slice(1) : lines;
    const key = readLogKey(logPath(home));
    return whole.filter((line) => lineOfFleet(line, key) === null);
  } finally {
    closeSync(fd);
  }
}

function inOneLine(lines: readonly string[]): string {
  return lines
    .join("\n")
    .trim()
    .replace(/\p{Cc}+/gu, " | ");
}

/*
 * The agent of a server can write anything to the server's log, because the log is the output of the server. So the
 * fleet signs its own lines. The key is beside the log, and the sandbox keeps both out of the agent's reach.
 */

const KEY_BYTES = 32;
const SIGNATURE_BYTES = 12;
/** A line of the fleet: time, `[copilotfleet]`, text and signature. */
const LINE = /^([\d-]+T[\d:.]+Z \[copilotfleet\] .*?)(?: #([\w-]{16}))?$/s;
const MARK = /\[copilotfleet\]/i;
/** Precedes a line that looks like a line of the fleet, but has no valid signature. */
const NOT_OF_FLEET = "[server] ";

type LogKey = Buffer;

function keyPath(log: string): string {
  return join(dirname(log), "log-key");
}

/** Makes the key of a log if it has none. The caller must hold the claim on the server. */
export function makeLogKey(log: string): void {
  const path = keyPath(log);
  if (existsSync(path)) return;
  writing(path, () => replaceServerFile(path, randomBytes(KEY_BYTES).toString("base64url")));
}

/** The key of a log. Null before the first launch of its server, so no agent has written to the log. */
export function readLogKey(log: string): LogKey | null {
  return ifThere(() => Buffer.from(readFileSync(keyPath(log), "utf8"), "base64url"));
}

/** A line of the fleet with its signature, as the log contains it. Without a key, the line stays unsigned. */
export function signedLine(line: string, key: LogKey | null): string {
  return key === null ? line : `${line} #${signatureOf(line, key).toString("base64url")}`;
}

/** Returns a line of the fleet without its signature; null if the fleet did not write the line. */
export function lineOfFleet(line: string, key: LogKey | null): string | null {
  const [, text, signature] = LINE.exec(line) ?? [];
  if (text === undefined) return null;
  if (key === null) return signature === undefined ? text : null;
  if (signature === undefined) return null;
  return timingSafeEqual(Buffer.from(signature, "base64url"), signatureOf(text, key)) ? text : null;
}

/**
 * A log line as people read it: without its signature, or with `[server]` before it if it only imitates a line of the
 * fleet.
 */
export function readableLine(line: string, key: LogKey | null): string {
  return lineOfFleet(line, key) ?? (MARK.test(line) ? `${NOT_OF_FLEET}${line}` : line);
}

function signatureOf(line: string, key: LogKey): Buffer {
  return createHmac("sha256", key).update(line).digest().subarray(0, SIGNATURE_BYTES);
}
