import { useCallback, useMemo, useState } from "preact/hooks";
import { ask } from "../api/client.js";
import { ago, bytes, exact, plural, usePolled, useTitle } from "../parts/hooks.js";
import { Badge, Empty, Loading, Name, ProblemNotice, Tiles } from "../parts/notice.js";
import { type Column, Search, Table } from "../parts/table.js";
import type { PageProps } from "../shell.js";
import type { AnySession, Lease } from "./operations.js";

const EVERY_MS = 5_000;
const PAGE = 200;
const MOST_PAGES = 10;

interface Loaded {
  sessions: readonly AnySession[];
  isAll: boolean;
}

/** The page with the sessions of all users, or of the user that the address names. It shows no conversations. */
export function AllSessions({ id: user }: PageProps) {
  const [search, setSearch] = useState("");
  const [pages, setPages] = useState(1);
  useTitle(user === "" ? "All sessions" : `Sessions of ${user}`);
  const load = useCallback(async (signal: AbortSignal) => await loadPages(user, pages, signal), [user, pages]);
  const { value, problem } = usePolled(load, EVERY_MS);
  const found = useMemo(() => matching(value?.sessions ?? [], search), [value, search]);
  return (
    <div class="page wide">
      <div class="page-head">
        <h1 dir="auto">{user === "" ? "All sessions" : `Sessions of ${user}`}</h1>
        {user !== "" && (
          <a class="button" href="#/all-sessions">
            Show all users
          </a>
        )}
        <Search label="Search the sessions" value={search} onValue={setSearch} />
      </div>
      <ProblemNotice problem={problem} />
      {value === undefined && problem === undefined && <Loading />}
      {value !== undefined && <Summary {...value} />}
      {value !== undefined && found.length === 0 && (
        <Empty title={search === "" ? "There are no sessions." : "No session matches."} />
      )}
      {found.length > 0 && (
        <Table label="Sessions" columns={COLUMNS} rows={found} idOf={({ id }) => id} sortedBy="Owner" />
      )}
      {value?.isAll === false && (
        <p class="more">
          {pages < MOST_PAGES ? (
            <button type="button" class="button" onClick={() => setPages(pages * 2)}>
              Show more
            </button>
          ) : (
            <span class="quiet">
              The {value.sessions.length} newest sessions are shown. Choose an owner to see all of one.
            </span>
          )}
        </p>
      )}
    </div>
  );
}

function Summary({ sessions, isAll }: Loaded) {
  const count = (of: (session: AnySession) => boolean) => sessions.filter(of).length;
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

const COLUMNS: readonly Column<AnySession>[] = [
  {
    title: "Session",
    by: ({ id }) => id,
    cell: ({ id, purpose, model }) => (
      <>
        <Name class="cell-title" text={id} />
        {(purpose !== null || model !== null) && (
          <span class="cell-note">
            {purpose !== null && <bdi>{purpose}</bdi>} {model !== null && <bdi>{model}</bdi>}
          </span>
        )}
      </>
    ),
  },
  {
    title: "Owner",
    by: ({ owner }) => owner,
    cell: ({ owner, members, kind }) => (
      <>
        <a href={`#/all-sessions/${encodeURIComponent(owner)}`}>
          <Name text={owner} />
        </a>
        {kind === "collaborative" && (
          <span class="cell-note" title={members.join(", ")}>
            {members.length === 0 ? "shared" : `and ${plural(members.length, "member")}`}
          </span>
        )}
      </>
    ),
  },
  {
    title: "State",
    by: ({ state }) => state,
    cell: ({ state, stranded }) => <Badge word={stranded ? "stranded" : state} />,
  },
  { title: "Lease", by: ({ lease }) => lease?.holder ?? null, cell: ({ lease }) => <Held lease={lease} /> },
  {
    title: "Server",
    by: ({ serverId, host }) => `${serverId} ${host ?? ""}`,
    cell: ({ serverId, host }) => (
      <>
        <Name text={serverId} />
        {host !== null && <span class="cell-note">on {host}</span>}
      </>
    ),
  },
  { title: "Size", isNumber: true, by: ({ sizeBytes }) => sizeBytes, cell: ({ sizeBytes }) => bytes(sizeBytes) },
  {
    title: "Last use",
    by: ({ lastUsedAt }) => -Date.parse(lastUsedAt),
    cell: ({ lastUsedAt }) => (
      <time dateTime={lastUsedAt} title={exact(lastUsedAt)}>
        {ago(lastUsedAt)}
      </time>
    ),
  },
];

function Held({ lease }: { lease: Lease | null }) {
  if (lease === null) return <span class="quiet">–</span>;
  return (
    <>
      <Name text={lease.holder} />
      <span class="cell-note" title={`fence ${lease.fence}, until ${exact(lease.expiresAt)}`}>
        since {ago(lease.acquiredAt)}
      </span>
    </>
  );
}

async function loadPages(user: string, pages: number, signal: AbortSignal): Promise<Loaded> {
  const whose = user === "" ? "all=true" : `user=${encodeURIComponent(user)}`;
  const sessions: AnySession[] = [];
  let cursor: string | null = null;
  for (let page = 0; page < pages; page += 1) {
    const from: string = cursor === null ? "" : `&cursor=${encodeURIComponent(cursor)}`;
    const path = `/v1/sessions?${whose}&limit=${PAGE}${from}`;
    const answer: { sessions: AnySession[]; next: string | null } = await ask("GET", path, { signal });
    sessions.push(...answer.sessions);
    cursor = answer.next;
    if (cursor === null) break;
  }
  return { sessions, isAll: cursor === null };
}

function matching(sessions: readonly AnySession[], search: string): readonly AnySession[] {
  const wanted = search.trim().toLowerCase();
  return sessions.filter(({ id, owner, purpose, state, model, members, serverId, host, lease }) =>
    [id, owner, purpose, state, model, serverId, host, lease?.holder, ...members]
      .join(" ")
      .toLowerCase()
      .includes(wanted),
  );
}
