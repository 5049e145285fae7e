import { useCallback, useMemo, useState } from "preact/hooks";
import { ask, type Problem, problemFrom, segment } from "../api/client.js";
import { Dialog } from "../parts/dialog.js";
import { ago, plural, usePolled, useTitle } from "../parts/hooks.js";
import { Badge, Empty, Loading, Name, ProblemNotice } from "../parts/notice.js";
import { type Column, Search, Table } from "../parts/table.js";
import type { PageProps } from "../shell.js";
import { limitsPath, SetLimits, type UserLimits } from "../usage/limits.js";
import { Operations, type Receipt, type Server, ServerAction, type Servers, type User } from "./operations.js";

const EVERY_MS = 5_000;

/** A user with their own server. If several hosts have one, prefers one that runs. */
interface Entry extends User {
  server: Server | undefined;
}

type Chosen = { verb: UserVerb; entry: Entry } | { stop: Server } | { limits: UserLimits };

/** The users who have a session, a server or a token, with the actions of an operator. */
export function Users({ caller }: PageProps) {
  const [search, setSearch] = useState("");
  const [chosen, setChosen] = useState<Chosen | null>(null);
  const [receipt, setReceipt] = useState<Receipt | null>(null);
  const [failure, setFailure] = useState<Problem>();
  useTitle("Users");
  const load = useCallback(async (signal: AbortSignal) => {
    const [{ users }, { servers }] = await Promise.all([
      ask<{ users: User[] }>("GET", "/v1/users", { signal }),
      ask<Servers>("GET", "/v1/servers", { signal }),
    ]);
    return users.map((each): Entry => {
      const own = servers.filter(({ user }) => user === each.user);
      return { ...each, server: own.find(({ pid }) => pid !== null) ?? own[0] };
    });
  }, []);
  const { value, problem, reload } = usePolled(load, EVERY_MS);
  const found = useMemo(
    () => (value ?? []).filter(({ user }) => user.toLowerCase().includes(search.trim().toLowerCase())),
    [value, search],
  );
  const close = useCallback(() => setChosen(null), []);
  const setLimits = (user: string) => {
    setFailure(undefined);
    void ask<UserLimits>("GET", limitsPath(user)).then(
      (limits) => setChosen({ limits }),
      (error: unknown) => setFailure(problemFrom(error)),
    );
  };
  const done = async (purged: Receipt | null) => {
    setReceipt(purged);
    await reload();
  };
  const columns: Column<Entry>[] = [
    ...COLUMNS,
    {
      title: "Actions",
      cell: (entry) => {
        const { user, suspended, server } = entry;
        const button = (title: string, act: () => void, isDisabled = false) => (
          <button
            type="button"
            class="button small"
            disabled={isDisabled}
            aria-label={`${title} ${user}`}
            onClick={act}
          >
            {title}
          </button>
        );
        const choose = (verb: UserVerb) => () => setChosen({ verb, entry });
        return (
          <span class="actions">
            {server !== undefined && server.pid !== null
              ? button("Stop", () => setChosen({ stop: server }), server.away)
              : button("Start", choose("start"), suspended !== null)}
            {button("Limits", () => setLimits(user))}
            {suspended === null && button("Suspend", choose("suspend"))}
            {suspended !== null && button("Resume", choose("resume"))}
            {button("Purge", choose("purge"))}
          </span>
        );
      },
    },
  ];
  return (
    <div class="page wide">
      <div class="page-head">
        <h1>Users</h1>
        <Search label="Search the users" value={search} onValue={setSearch} />
      </div>
      <Operations />
      {receipt !== null && <Purged {...receipt} />}
      <ProblemNotice problem={failure ?? problem} />
      {value === undefined && problem === undefined && <Loading />}
      {value !== undefined && found.length === 0 && (
        <Empty title={search === "" ? "There are no users." : "No user matches."} />
      )}
      {found.length > 0 && (
        <Table label="Users" columns={columns} rows={found} idOf={({ user }) => user} sortedBy="User" />
      )}
      {chosen !== null && "verb" in chosen && (
        <UserAction
          verb={chosen.verb}
          user={chosen.entry}
          isOwn={chosen.entry.user === caller.user}
          close={close}
          done={done}
        />
      )}
      {chosen !== null && "stop" in chosen && <ServerAction server={chosen.stop} verb="stop" close={close} />}
      {chosen !== null && "limits" in chosen && <SetLimits limits={chosen.limits} close={close} done={reload} />}
    </div>
  );
}

const COLUMNS: readonly Column<Entry>[] = [
  { title: "User", by: ({ user }) => user, cell: ({ user }) => <Name class="cell-title" text={user} /> },
  {
    title: "State",
    by: ({ suspended, server }) => (suspended === null ? (server?.state ?? null) : "suspended"),
    cell: ({ suspended, server }) => (
      <>
        <Badge word={suspended === null ? (server?.state ?? "no server") : "suspended"} />
        {suspended !== null && (
          <span class="cell-note">
            {ago(suspended.since)} <bdi>{suspended.reason}</bdi>
          </span>
        )}
      </>
    ),
  },
  {
    title: "Sessions",
    isNumber: true,
    by: ({ sessions }) => sessions,
    cell: ({ user, sessions }) => <a href={`#/all-sessions/${encodeURIComponent(user)}`}>{sessions}</a>,
  },
  { title: "Tokens", isNumber: true, by: ({ tokens }) => tokens, cell: ({ tokens }) => tokens },
  { title: "Usage", cell: ({ user }) => <a href={`#/usage/${encodeURIComponent(user)}`}>Show</a> },
];

function Purged({ user, remains }: Receipt) {
  return (
    <div class={`notice ${remains.length === 0 ? "" : "warn"}`} role="status">
      <p>
        The data of <Name text={user} /> {remains.length === 0 ? "is erased." : "is erased, except for:"}
      </p>
      {remains.map(({ host, what, why }) => (
        <p key={`${host} ${what}`} class="quiet">
          {what}
          {host !== null && ` on ${host}`}: {why}
        </p>
      ))}
    </div>
  );
}

type UserVerb = "start" | "suspend" | "resume" | "purge";

interface Action {
  title: string;
  isDangerous?: boolean;
  effects(user: User): readonly string[];
}

const ACTIONS: Readonly<Record<UserVerb, Action>> = {
  start: { title: "Start the server", effects: () => ["The user's own server starts, with the same home."] },
  suspend: {
    title: "Suspend",
    isDangerous: true,
    effects: () => [
      "The fleet refuses the user at every entry point, with all tokens and sign-ons.",
      "The user's turns and connections end within seconds, and the user's server stops.",
      "Sessions and all other data stay.",
    ],
  },
  resume: { title: "Resume", effects: () => ["The user's tokens and sign-ons are valid again."] },
  purge: {
    title: "Purge",
    isDangerous: true,
    effects: ({ sessions, tokens }) => [
      `This erases ${plural(sessions, "session")}, the server with its files, and ${plural(tokens, "token")}, on all hosts.`,
      "The user's turns are cut.",
      "In usage and events, a pseudonym replaces the name.",
      "There is no way back.",
    ],
  },
};

interface UserActionProps {
  verb: UserVerb;
  user: User;
  /** Whether this user is the operator who is signed in. */
  isOwn: boolean;
  close(): void;
  /** @param receipt null unless the action was a purge */
  done(receipt: Receipt | null): Promise<void>;
}

/** Asks for confirmation before an action on a user, and lists its effects. */
function UserAction({ verb, user, isOwn, close, done }: UserActionProps) {
  const { title, isDangerous = false, effects } = ACTIONS[verb];
  const act = async () => {
    const path = `/v1/users/${segment(user.user)}`;
    const receipt = verb === "purge" ? await ask<Receipt>("DELETE", path) : null;
    if (verb !== "purge") await ask("POST", `${path}/${verb}`);
    await done(receipt);
  };
  const of = verb === "start" ? "Start the server of" : title;
  return (
    <Dialog title={`${of} ${user.user}?`} action={title} isDangerous={isDangerous} act={act} close={close}>
      <ul class="effects">
        {effects(user).map((effect) => (
          <li key={effect}>{effect}</li>
        ))}
        {isOwn && isDangerous && <li>This user is you. You will be signed out.</li>}
      </ul>
    </Dialog>
  );
}
