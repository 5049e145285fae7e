import { useCallback, useMemo, useRef, useState } from "preact/hooks";
import { ask, sessionPath } from "../api/client.js";
import type { Session, SessionPage } from "../api/types.js";
import { Dialog, Field } from "../parts/dialog.js";
import { ago, bytes, exact, go, plural, useKey, usePolled, useTitle } from "../parts/hooks.js";
import { Badge, Empty, Loading, ProblemNotice } from "../parts/notice.js";
import type { PageProps } from "../shell.js";

const EVERY_MS = 5_000;
const PAGE = 50;
const MOST = 200;

/** The user's own sessions, and those that the user is a member of. */
export function Sessions({ caller }: PageProps) {
  const [limit, setLimit] = useState(PAGE);
  const [search, setSearch] = useState("");
  const [dialog, setDialog] = useState<"new" | Session | null>(null);
  const searchField = useRef<HTMLInputElement>(null);
  useTitle("Sessions");
  useKey(
    "/",
    useCallback(() => searchField.current?.focus(), []),
  );
  const load = useCallback(
    async (signal: AbortSignal) => await ask<SessionPage>("GET", `/v1/sessions?limit=${limit}`, { signal }),
    [limit],
  );
  const { value, problem, reload } = usePolled(load, EVERY_MS);
  const found = useMemo(() => matching(value?.sessions ?? [], search), [value, search]);
  const close = useCallback(() => setDialog(null), []);
  const mayUse = caller.scopes.some((scope) => scope !== "read");
  return (
    <div class="page">
      <div class="page-head">
        <h1>Sessions</h1>
        <input
          ref={searchField}
          type="search"
          class="search"
          placeholder="Search  /"
          aria-label="Search the sessions"
          aria-keyshortcuts="/"
          dir="auto"
          value={search}
          onInput={({ currentTarget }) => setSearch(currentTarget.value)}
        />
        {mayUse && (
          <button type="button" class="button primary" onClick={() => setDialog("new")}>
            New session
          </button>
        )}
      </div>
      <ProblemNotice problem={problem} />
      {value === undefined && problem === undefined && <Loading />}
      {value !== undefined && found.length === 0 && <NoSessions isSearch={search !== ""} />}
      {found.length > 0 && (
        <ul class="rows" aria-label="Sessions">
          {found.map((session) => (
            <Row
              key={session.id}
              session={session}
              user={caller.user}
              remove={mayUse && session.owner === caller.user ? () => setDialog(session) : null}
            />
          ))}
        </ul>
      )}
      {value?.next != null && (
        <p class="more">
          {limit < MOST ? (
            <button type="button" class="button" onClick={() => setLimit(MOST)}>
              Show more
            </button>
          ) : (
            <span class="quiet">The {MOST} newest sessions are shown.</span>
          )}
        </p>
      )}
      {dialog === "new" && <NewSession close={close} />}
      {dialog !== null && dialog !== "new" && <Deletion session={dialog} close={close} deleted={reload} />}
    </div>
  );
}

function Row({ session, user, remove }: { session: Session; user: string; remove: (() => void) | null }) {
  const { id, owner, purpose, title, kind, members, state, model, lastUsedAt, sizeBytes } = session;
  const others = kind === "collaborative" ? [owner, ...members].filter((each) => each !== user) : [];
  return (
    <li class="row">
      <a class="row-main" href={`#/sessions/${encodeURIComponent(id)}`}>
        <bdi class="row-title">{title ?? id}</bdi>
        <span class="row-note">
          {title !== null && <bdi>{id}</bdi>}
          {purpose !== null && <bdi>{purpose}</bdi>}
          {kind === "collaborative" && (
            <span>{others.length === 0 ? "shared" : `with ${plural(others.length, "other")}`}</span>
          )}
          {owner !== user && (
            <span>
              owned by <bdi>{owner}</bdi>
            </span>
          )}
          {model !== null && <bdi>{model}</bdi>}
          <span>{bytes(sizeBytes)}</span>
          <Expiry at={session.expiresAt} />
        </span>
      </a>
      <Badge word={session.stranded ? "stranded" : state} />
      <time class="row-time" dateTime={lastUsedAt} title={exact(lastUsedAt)}>
        {ago(lastUsedAt)}
      </time>
      {remove !== null && (
        <button type="button" class="button small plain" onClick={remove} aria-label={`Delete ${title ?? id}`}>
          Delete
        </button>
      )}
    </li>
  );
}

/** When an unused session is deleted, such as "expires in 3 hours". */
export function Expiry({ at }: { at: string | null }) {
  if (at === null) return null;
  const isSoon = Date.parse(at) - Date.now() < 60_000;
  return <span title={exact(at)}>expires {isSoon ? "soon" : ago(at)}</span>;
}

function NoSessions({ isSearch }: { isSearch: boolean }) {
  if (isSearch) return <Empty title="No session matches." />;
  return (
    <Empty title="You have no sessions.">
      <p class="quiet">Create one to talk to your agent.</p>
    </Empty>
  );
}

export function Deletion({
  session,
  close,
  deleted,
}: {
  session: Session;
  close(): void;
  deleted(): Promise<void> | void;
}) {
  const act = async () => {
    await ask("DELETE", sessionPath(session.id));
    await deleted();
  };
  return (
    <Dialog
      title={`Delete ${session.title ?? session.id}?`}
      action="Delete the session"
      isDangerous
      act={act}
      close={close}
    >
      <p>This deletes the conversation for good, also for its members. There is no way back.</p>
    </Dialog>
  );
}

function matching(sessions: readonly Session[], search: string): readonly Session[] {
  const wanted = search.trim().toLowerCase();
  const textOf = ({ id, title, purpose, owner, members, state, model }: Session) =>
    [id, title, purpose, owner, state, model, ...members].join(" ").toLowerCase();
  return sessions
    .filter((session) => textOf(session).includes(wanted))
    .toSorted((a, b) => (a.lastUsedAt < b.lastUsedAt ? 1 : -1));
}

function NewSession({ close }: { close(): void }) {
  const [id, setId] = useState("");
  const [purpose, setPurpose] = useState("");
  const [members, setMembers] = useState("");
  const [ttl, setTtl] = useState("");
  const create = async () => {
    const others = namesIn(members);
    const body = {
      ...(id.trim() === "" ? {} : { id: id.trim() }),
      ...(purpose.trim() === "" ? {} : { purpose: purpose.trim() }),
      ...(ttl.trim() === "" ? {} : { ttl: ttl.trim() }),
      ...(others.length === 0 ? {} : { members: others }),
    };
    const { session } = await ask<{ session: Session }>("POST", "/v1/sessions", { body });
    go(`/sessions/${encodeURIComponent(session.id)}`);
  };
  return (
    <Dialog title="New session" action="Create" act={create} close={close}>
      <Field label="Purpose" isFirst value={purpose} onValue={setPurpose} placeholder="review" />
      <Field label="Id" value={id} onValue={setId} hint="If you leave it out, the fleet chooses one." />
      <Field
        label="Members"
        value={members}
        onValue={setMembers}
        hint="User ids, separated by commas. They may use the session, too."
      />
      <Field
        label="Time to live"
        value={ttl}
        onValue={setTtl}
        placeholder="30d"
        hint="How long to keep the session after its last use. Default: the fleet's session.ttl."
      />
    </Dialog>
  );
}

/** The user ids in a text that separates them with commas or spaces. */
export function namesIn(text: string): string[] {
  return [...new Set(text.split(/[,\s]+/).filter((name) => name !== ""))];
}
