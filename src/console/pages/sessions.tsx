import { useState } from "preact/hooks";
import { ask, sessionPath } from "../api/client.js";
import type { Answer, Session } from "../api/types.js";
import { Dialog, Field, useDialog, type Values } from "../parts/dialog.js";
import { ago, bytes, exact, go, plural, useAnswer } from "../parts/hooks.js";
import { Ago, Badge, Button, More } from "../parts/notice.js";
import { ListPage } from "../parts/table.js";
import type { PageProps } from "../shell.js";

const EVERY_MS = 5_000;
const PAGE = 50;
const MOST = 200;

/** The user's own sessions, and those that the user is a member of. */
export function Sessions({ caller }: PageProps) {
  const [limit, setLimit] = useState(PAGE);
  const polled = useAnswer<Answer<"listSessions">>(`/v1/sessions?limit=${limit}`, EVERY_MS);
  const [dialog, show] = useDialog(polled.reload);
  const mayUse = caller.scopes.some((scope) => scope !== "read");
  return (
    <ListPage
      title="Sessions"
      noun="session"
      polled={polled}
      rowsOf={({ sessions }) => sessions.toSorted((a, b) => (a.lastUsedAt < b.lastUsedAt ? 1 : -1))}
      wordsOf={({ id, title, purpose, owner, members, state, model }) => [
        ...[id, title, purpose, owner, state, model],
        ...members,
      ]}
      notices={dialog}
      none="You have no sessions."
      hint="Create one to talk to your agent."
      buttons={
        mayUse && (
          <Button class="primary" act={() => show(<NewSession />)}>
            New session
          </Button>
        )
      }
      below={({ next }) =>
        next !== null &&
        (limit < MOST ? (
          <More act={() => setLimit(MOST)}>Show more</More>
        ) : (
          <More>The {MOST} newest sessions are shown.</More>
        ))
      }
    >
      {(found) => (
        <ul class="rows" aria-label="Sessions">
          {found.map((session) => (
            <Row
              key={session.id}
              session={session}
              user={caller.user}
              remove={mayUse && session.owner === caller.user ? () => show(<Deletion session={session} />) : null}
            />
          ))}
        </ul>
      )}
    </ListPage>
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
      <Ago class="row-time" at={lastUsedAt} />
      {remove !== null && (
        <Button class="small plain" about={title ?? id} act={remove}>
          Delete
        </Button>
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

export function Deletion({ session }: { session: Session }) {
  const act = async () => {
    await ask("DELETE", sessionPath(session.id));
    go("/sessions");
  };
  return (
    <Dialog title={`Delete ${session.title ?? session.id}?`} action="Delete the session" isDangerous act={act}>
      <p>This deletes the conversation for good, also for its members. There is no way back.</p>
    </Dialog>
  );
}

function NewSession() {
  const create = async ({ members, ...given }: Values) => {
    const body = { ...given, ...(members === undefined ? {} : { members: namesIn(members) }) };
    const { session } = await ask<Answer<"createSession">>("POST", "/v1/sessions", { body });
    go(`/sessions/${encodeURIComponent(session.id)}`);
  };
  return (
    <Dialog title="New session" action="Create" act={create}>
      <Field name="purpose" label="Purpose" placeholder="review" />
      <Field name="id" label="Id" hint="If you leave it out, the fleet chooses one." />
      <Field name="members" label="Members" hint="User ids, separated by commas. They may use the session, too." />
      <Field
        name="ttl"
        label="Time to live"
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
