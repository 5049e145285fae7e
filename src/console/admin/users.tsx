import { useCallback, useState } from "preact/hooks";
import { ask, type Problem, problemFrom, segment } from "../api/client.js";
import type { Answer, Receipt, Server, User, UserLimits } from "../api/types.js";
import { Dialog, useDialog } from "../parts/dialog.js";
import { ago, plural, usePolled } from "../parts/hooks.js";
import { Badge, Name, ProblemNotice } from "../parts/notice.js";
import { actions, type Column, ListPage, number, Table } from "../parts/table.js";
import type { PageProps } from "../shell.js";
import { limitsPath, SetLimits } from "../usage/limits.js";
import { Operations, ServerAction } from "./operations.js";

const EVERY_MS = 5_000;

/** A user with their own server. If several hosts have one, prefers one that runs. */
interface Entry extends User {
  server: Server | undefined;
}

/** The users who have a session, a server or a token, with the actions of an operator. */
export function Users({ caller }: PageProps) {
  const [receipt, setReceipt] = useState<Receipt | null>(null);
  const [failure, setFailure] = useState<Problem>();
  const load = useCallback(async (signal: AbortSignal) => {
    const [{ users }, { servers }] = await Promise.all([
      ask<Answer<"listUsers">>("GET", "/v1/users", { signal }),
      ask<Answer<"listServers">>("GET", "/v1/servers", { signal }),
    ]);
    return users.map((each): Entry => {
      const own = servers.filter(({ user }) => user === each.user);
      return { ...each, server: own.find(({ pid }) => pid !== null) ?? own[0] };
    });
  }, []);
  const polled = usePolled(load, EVERY_MS);
  const [dialog, show] = useDialog(polled.reload);
  const setLimits = (user: string) => {
    setFailure(undefined);
    void ask<UserLimits>("GET", limitsPath(user)).then(
      (limits) => show(<SetLimits limits={limits} />),
      (error: unknown) => setFailure(problemFrom(error)),
    );
  };
  const buttons = actions<Entry>(
    ({ user }) => user,
    (entry) => {
      const { user, suspended, server } = entry;
      const isOwn = user === caller.user;
      const choose = (verb: UserVerb) => () =>
        show(<UserAction verb={verb} user={entry} isOwn={isOwn} purged={setReceipt} />);
      return [
        server !== undefined && server.pid !== null
          ? { title: "Stop", isDisabled: server.away, act: () => show(<ServerAction server={server} verb="stop" />) }
          : { title: "Start", isDisabled: suspended !== null, act: choose("start") },
        { title: "Limits", act: () => setLimits(user) },
        suspended === null ? { title: "Suspend", act: choose("suspend") } : { title: "Resume", act: choose("resume") },
        { title: "Purge", act: choose("purge") },
      ];
    },
  );
  return (
    <ListPage
      title="Users"
      noun="user"
      polled={polled}
      rowsOf={(users) => users}
      wordsOf={({ user }) => [user]}
      none="There are no users."
      notices={
        <>
          {dialog}
          <Operations />
          {receipt !== null && <Purged {...receipt} />}
          <ProblemNotice problem={failure} />
        </>
      }
    >
      {(found) => (
        <Table label="Users" columns={[...COLUMNS, buttons]} rows={found} idOf={({ user }) => user} sortedBy="User" />
      )}
    </ListPage>
  );
}

const COLUMNS: readonly Column<Entry>[] = [
  { title: "User", by: ({ user }) => user, cell: ({ user }) => <Name class="cell-title" text={user} /> },
  {
    title: "State",
    by: ({ suspended, server }) => (suspended === null ? (server?.state ?? null) : "suspended"),
    cell: ({ suspended, server }) => <Badge word={suspended === null ? (server?.state ?? "no server") : "suspended"} />,
    note: ({ suspended }) =>
      suspended !== null && (
        <>
          {ago(suspended.since)} <bdi>{suspended.reason}</bdi>
        </>
      ),
  },
  {
    title: "Sessions",
    isNumber: true,
    by: ({ sessions }) => sessions,
    cell: ({ user, sessions }) => <a href={`#/all-sessions/${encodeURIComponent(user)}`}>{sessions}</a>,
  },
  number("Tokens", ({ tokens }) => tokens),
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
  /** @param receipt null unless the action was a purge */
  purged(receipt: Receipt | null): void;
}

/** Asks for confirmation before an action on a user, and lists its effects. */
function UserAction({ verb, user, isOwn, purged }: UserActionProps) {
  const { title, isDangerous = false, effects } = ACTIONS[verb];
  const act = async () => {
    const path = `/v1/users/${segment(user.user)}`;
    const receipt = verb === "purge" ? await ask<Receipt>("DELETE", path) : null;
    if (verb !== "purge") await ask("POST", `${path}/${verb}`);
    purged(receipt);
  };
  return (
    <Dialog
      title={`${verb === "start" ? "Start the server of" : title} ${user.user}?`}
      action={title}
      isDangerous={isDangerous}
      effects={[...effects(user), ...(isOwn && isDangerous ? ["This user is you. You will be signed out."] : [])]}
      act={act}
    />
  );
}
