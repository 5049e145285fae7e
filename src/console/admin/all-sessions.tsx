import { useCallback, useState } from "preact/hooks";
import { ask } from "../api/client.js";
import type { Answer, Session } from "../api/types.js";
import { ago, bytes, exact, plural, usePolled } from "../parts/hooks.js";
import { Badge, More, Name, Tiles } from "../parts/notice.js";
import { type Column, ListPage, number, Table, time } from "../parts/table.js";
import type { PageProps } from "../shell.js";

const EVERY_MS = 5_000;
const PAGE = 200;
const MOST_PAGES = 10;

interface Found {
  sessions: readonly Session[];
  isAll: boolean;
}

/** The page with the sessions of all users, or of the user that the address names. It shows no conversations. */
export function AllSessions({ id: user }: PageProps) {
  const [pages, setPages] = useState(1);
  const load = useCallback(async (signal: AbortSignal) => await loadPages(user, pages, signal), [user, pages]);
  return (
    <ListPage
      title={user === "" ? "All sessions" : `Sessions of ${user}`}
      noun="session"
      polled={usePolled(load, EVERY_MS)}
      rowsOf={({ sessions }) => sessions}
      wordsOf={({ id, owner, purpose, state, model, members, serverId, host, lease }) => [
        ...[id, owner, purpose, state, model, serverId, host, lease?.holder],
        ...members,
      ]}
      none="There are no sessions."
      buttons={
        user !== "" && (
          <a class="button" href="#/all-sessions">
            Show all users
          </a>
        )
      }
      above={(value) => <Summary {...value} />}
      below={({ sessions, isAll }) =>
        !isAll &&
        (pages < MOST_PAGES ? (
          <More act={() => setPages(pages * 2)}>Show more</More>
        ) : (
          <More>The {sessions.length} newest sessions are shown. Choose an owner to see all of one.</More>
        ))
      }
    >
      {(found) => <Table label="Sessions" columns={COLUMNS} rows={found} idOf={({ id }) => id} sortedBy="Owner" />}
    </ListPage>
  );
}

function Summary({ sessions, isAll }: Found) {
  const count = (of: (session: Session) => boolean) => sessions.filter(of).length;
  const more = isAll ? "" : "+";
  return (
    <Tiles
      tiles={[
        ["Sessions", `${sessions.length}${more}`],
        ["Owners", `${new Set(sessions.map(({ owner }) => owner)).size}${more}`],
        ["In memory", count(({ state }) => state === "active")],
        ["Leased", count(({ lease }) => lease !== null)],
        ["On disk", bytes(sessions.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0))],
      ]}
    />
  );
}

const COLUMNS: readonly Column<Session>[] = [
  {
    title: "Session",
    by: ({ id }) => id,
    cell: ({ id }) => <Name class="cell-title" text={id} />,
    note: ({ purpose, model }) => [purpose, model].map((text) => text !== null && <bdi key={text}>{text} </bdi>),
  },
  {
    title: "Owner",
    by: ({ owner }) => owner,
    cell: ({ owner }) => <Name text={owner} href={`#/all-sessions/${encodeURIComponent(owner)}`} />,
    note: ({ members, kind }) =>
      kind === "collaborative" && (
        <span title={members.join(", ")}>
          {members.length === 0 ? "shared" : `and ${plural(members.length, "member")}`}
        </span>
      ),
  },
  {
    title: "State",
    by: ({ state }) => state,
    cell: ({ state, stranded }) => <Badge word={stranded ? "stranded" : state} />,
  },
  {
    title: "Lease",
    by: ({ lease }) => lease?.holder ?? null,
    cell: ({ lease }) => (lease === null ? <span class="quiet">–</span> : <Name text={lease.holder} />),
    note: ({ lease }) =>
      lease !== null && (
        <span title={`fence ${lease.fence}, until ${exact(lease.expiresAt)}`}>since {ago(lease.acquiredAt)}</span>
      ),
  },
  {
    title: "Server",
    by: ({ serverId, host }) => `${serverId} ${host ?? ""}`,
    cell: ({ serverId }) => <Name text={serverId} />,
    note: ({ host }) => host !== null && `on ${host}`,
  },
  number("Size", ({ sizeBytes }) => sizeBytes, { show: bytes }),
  time("Last use", ({ lastUsedAt }) => lastUsedAt),
];

async function loadPages(user: string, pages: number, signal: AbortSignal): Promise<Found> {
  const whose = user === "" ? "all=true" : `user=${encodeURIComponent(user)}`;
  const sessions: Session[] = [];
  let cursor: string | null = null;
  for (let page = 0; page < pages; page += 1) {
    const from: string = cursor === null ? "" : `&cursor=${encodeURIComponent(cursor)}`;
    const path = `/v1/sessions?${whose}&limit=${PAGE}${from}`;
    const answer: Answer<"listSessions"> = await ask("GET", path, { signal });
    sessions.push(...answer.sessions);
    cursor = answer.next;
    if (cursor === null) break;
  }
  return { sessions, isAll: cursor === null };
}
