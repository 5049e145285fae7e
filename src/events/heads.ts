import type { Head } from "../store/file/events/files.js";
import { readEvents } from "./query.js";

/** The newest line of a host's log, as another host recorded it. */
export interface NotedHead extends Head {
  host: string;
}

/** The detail of a `host.head` event. */
export function describeHead({ host, seq, hash }: NotedHead): string {
  return `${host} ${seq} ${hash}`;
}

const DETAIL = /^(\S+) (\d{1,15}) (\S+)$/;

const PAGE = 1_000;

/** The heads (newest lines) of other hosts' logs, as this host has recorded them in its own log. */
export async function notedHeads(stateRoot: string): Promise<NotedHead[]> {
  const found: NotedHead[] = [];
  for (let after = 0; ; ) {
    const page = await readEvents(stateRoot, { types: ["host.head"], after, limit: PAGE });
    for (const { detail } of page.events) {
      const [, host = "", seq, hash = ""] = DETAIL.exec(detail ?? "") ?? [];
      if (seq !== undefined) found.push({ host, seq: Number(seq), hash });
    }
    if (!page.hasMore) return found;
    after = page.next;
  }
}
