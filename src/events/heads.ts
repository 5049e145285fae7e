import { type Head, LogFiles } from "../store/file/events/files.js";
import { countingLines, filesOf } from "../store/file/events/read.js";
import { readLine } from "./verify.js";

/** The newest line of a host's log, as another host noted it. */
export interface NotedHead extends Head {
  host: string;
}

/** The detail of an event `host.head`. */
export function describeHead({ host, seq, hash }: NotedHead): string {
  return `${host} ${seq} ${hash}`;
}

const DETAIL = /^(\S+) (\d{1,15}) (\S+)$/;

/** The heads of other hosts' logs that this host has noted in its own log. */
export function notedHeads(stateRoot: string): NotedHead[] {
  const found: NotedHead[] = [];
  for (const file of filesOf(new LogFiles(stateRoot))) {
    for (const text of countingLines(file) ?? []) {
      if (!text.includes('"host.head"')) continue;
      const line = readLine(text);
      const [, host = "", seq, hash = ""] = (line?.type === "host.head" && DETAIL.exec(line.detail ?? "")) || [];
      if (seq !== undefined) found.push({ host, seq: Number(seq), hash });
    }
  }
  return found;
}
