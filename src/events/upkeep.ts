import type { Config } from "../config/schema.js";
import type { EventLog } from "../model/events/event.js";
import { compact } from "../store/file/events/compact.js";
import { LogFiles } from "../store/file/events/files.js";
import { excess, removeSegments } from "../store/file/events/trim.js";
import { timeOfLast } from "./query.js";
import { LOG_BYTES, SEGMENT_BYTES } from "./writer.js";

interface UpkeepContext {
  config: Pick<Config, "events">;
  events: EventLog;
  stateRoot: string;
  maxBytes?: number;
}

/**
 * Deletes the oldest lines of this host's log that exceed `events.retention` or the size of the log. First records the
 * number of the last line to delete, so that the verification does not report the deleted lines as missing.
 */
export async function trimEvents(
  { config, events, stateRoot, maxBytes = LOG_BYTES }: UpkeepContext,
  nowMs = Date.now(),
): Promise<void> {
  await events.flush();
  const files = new LogFiles(stateRoot);
  const { retentionMs } = config.events;
  await compact(files, SEGMENT_BYTES);
  const segments = excess(files, { retentionMs, maxBytes }, { nowMs, timeOf: timeOfLast });
  const last = segments.at(-1);
  if (last === undefined) return;
  await events.record({ type: "events.shortened", reason: String(last.last), detail: `lines up to ${last.last}` });
  removeSegments(files, segments);
}
