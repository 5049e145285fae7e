import type { VNode } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { ask, type Problem, problemFrom, sessionPath } from "../api/client.js";
import type { Caller, Session } from "../api/types.js";
import { Deletion, Expiry, namesIn } from "../pages/sessions.js";
import { Dialog, Field, useDialog, type Values } from "../parts/dialog.js";
import { plural, useTitle } from "../parts/hooks.js";
import { Badge, Button, Empty, Loading, ProblemNotice, ProblemPage } from "../parts/notice.js";
import { ItemView } from "./item.js";
import { RequestCard } from "./request-card.js";
import { useConversation } from "./use-conversation.js";

/** New text scrolls into view only if the user is at most this far from the end of the conversation, in pixels. */
const NEAR_PX = 120;

export function Chat({ caller, id }: { caller: Caller; id: string }) {
  const chat = useConversation(id);
  const { conversation, session, isOwnTurn, failure, trouble } = chat;
  const { items, requests } = conversation;
  const [problem, setProblem] = useState<Problem>();
  const [dialog, show] = useDialog(chat.reload);
  const scroller = useRef<HTMLDivElement>(null);
  const isAtEnd = useRef(true);
  const hasAnswered = useRef(false);
  useTitle(session?.title ?? id);
  useEffect(() => {
    const { current } = scroller;
    if (current !== null && isAtEnd.current) current.scrollTop = current.scrollHeight;
  }, [items, requests, problem]);
  useEffect(() => {
    // The card that had the focus is gone. Move the focus to the next card, or back to the prompt.
    if (hasAnswered.current) document.querySelector<HTMLElement>(".request, .composer textarea")?.focus();
    hasAnswered.current = false;
  }, [requests]);
  useEffect(() => {
    if (trouble === undefined) setProblem((before) => (before?.status === 0 ? undefined : before));
  }, [trouble]);
  if (failure !== undefined) {
    return (
      <ProblemPage problem={failure}>
        <a href="#/sessions">Back to the sessions</a>
      </ProblemPage>
    );
  }
  if (session === null) return <Loading />;
  const isRunning = isOwnTurn || conversation.isRunning;
  const mayUse = caller.scopes.some((scope) => scope !== "read");
  const send = async (prompt: string) => {
    setProblem(undefined);
    isAtEnd.current = true;
    const { isAccepted, problem: reason } = await chat.send(prompt);
    setProblem(reason);
    return isAccepted;
  };
  const last = items.at(-1);
  const isCut = last?.kind === "note" && last.tone === "warn";
  const failed =
    last?.kind === "note" && last.tone !== "" ? items.findLast(({ kind }) => kind === "prompt") : undefined;
  const isShared = session.kind === "collaborative";
  const past = items.flatMap((item) => (item.kind === "prompt" && (item.isOwn || !isShared) ? [item.text] : []));
  const stop = () => void chat.stop().catch((error: unknown) => setProblem(problemFrom(error)));
  return (
    <div class="chat">
      <ChatHead session={session} caller={caller} isRunning={isRunning} show={show} mayUse={mayUse} />
      <div
        ref={scroller}
        class="chat-scroll"
        // biome-ignore lint/a11y/noNoninteractiveTabindex: the keyboard must be able to scroll
        tabIndex={0}
        role="log"
        aria-label="Conversation"
        aria-live="off"
        onScroll={({ currentTarget }) => {
          const { scrollHeight, scrollTop, clientHeight } = currentTarget;
          isAtEnd.current = scrollHeight - scrollTop - clientHeight < NEAR_PX;
        }}
      >
        <div class="chat-column">
          {items.length === 0 && !isRunning && (
            <Empty title="This conversation is empty.">Write the first prompt below.</Empty>
          )}
          {items.map((item) => (
            <ItemView key={`${item.kind} ${item.id}`} item={item} isShared={isShared} />
          ))}
          {requests.map((request) => (
            <RequestCard
              key={request.id}
              sessionId={id}
              request={request}
              answered={(requestId) => {
                hasAnswered.current = true;
                chat.answered(requestId);
              }}
              mayAnswer={mayUse}
            />
          ))}
          {isRunning && requests.length === 0 && <Working isOwn={isOwnTurn} />}
          {!isCut && (trouble === undefined || problem?.status !== 0) && <ProblemNotice problem={problem} />}
          {failed?.kind === "prompt" && failed.attachments.length === 0 && mayUse && !isRunning && (
            <Button class="small again" act={() => void send(failed.text)}>
              Send again
            </Button>
          )}
          {trouble !== undefined && (
            <p class="notice" role="status">
              The connection is lost. The console tries to connect again…
            </p>
          )}
        </div>
      </div>
      <Announcer items={items} isRunning={isRunning} waits={requests.length} />
      {mayUse ? (
        <Composer isRunning={isRunning} isOwnTurn={isOwnTurn} past={past} send={send} stop={stop} />
      ) : (
        <p class="chat-note quiet">Your token has the scope read, so you can read this conversation but not write.</p>
      )}
      {dialog}
    </div>
  );
}

interface HeadProps {
  session: Session;
  caller: Caller;
  isRunning: boolean;
  mayUse: boolean;
  show(dialog: VNode): void;
}

function ChatHead({ session, caller, isRunning, mayUse, show }: HeadProps) {
  const { id, title, purpose, kind, owner, members, model, state } = session;
  const isOwner = owner === caller.user;
  const mayChange = isOwner && mayUse;
  return (
    <div class="chat-head">
      {caller.sessionId === null && (
        <a class="button small" href="#/sessions" aria-label="Back to the sessions">
          ←
        </a>
      )}
      <div class="chat-title">
        <h1 dir="auto">{title ?? id}</h1>
        <p class="row-note">
          {title !== null && <bdi>{id}</bdi>}
          {purpose !== null && <bdi>{purpose}</bdi>}
          {!isOwner && (
            <span>
              owned by <bdi>{owner}</bdi>
            </span>
          )}
          {model !== null && <bdi>{model}</bdi>}
          <Expiry at={session.expiresAt} />
        </p>
      </div>
      <Badge word={isRunning ? "active" : state} />
      <Button class="small" act={() => show(<Members session={session} mayChange={mayChange} />)}>
        {kind === "private" ? "Share" : plural(members.length, "member")}
      </Button>
      {mayChange && (
        <>
          <Button class="small" act={() => show(<Title session={session} />)}>
            Rename
          </Button>
          <Button class="small" act={() => show(<Deletion session={session} />)}>
            Delete
          </Button>
        </>
      )}
    </div>
  );
}

function Title({ session }: { session: Session }) {
  const save = async ({ title }: Values) =>
    await ask("PATCH", sessionPath(session.id), { body: { title: title ?? null } });
  return (
    <Dialog title="Rename the session" action="Save" act={save}>
      <Field name="title" label="Title" initial={session.title ?? ""} hint="One line of at most 80 characters." />
    </Dialog>
  );
}

function Working({ isOwn }: { isOwn: boolean }) {
  return (
    <p class="working">
      <span class="dots" aria-hidden="true" />
      {isOwn ? "Working…" : "Working… The reply appears here when it is complete."}
    </p>
  );
}

/** Announces complete replies, and that a reply is incomplete, to a screen reader, but not each piece of a reply. */
function Announcer({
  items,
  isRunning,
  waits,
}: {
  items: ReturnType<typeof useConversation>["conversation"]["items"];
  isRunning: boolean;
  waits: number;
}) {
  const started = useRef(items.length);
  const last = items.findLast((item) => item.kind === "note" || (item.kind === "reply" && item.state === "whole"));
  const isNew = items.length > started.current && !isRunning;
  // An error is an alert, so the screen reader has announced it.
  const cut = last?.kind === "note" && last.tone === "warn" ? "The reply is incomplete." : "";
  const end = last?.kind === "reply" ? `The agent replied: ${last.text}` : cut;
  return (
    <p class="sr-only" aria-live="polite">
      {waits > 0 ? "The agent waits for your answer." : isRunning ? "The agent is working." : isNew ? end : ""}
    </p>
  );
}

/** A second Esc within this time stops the turn, in milliseconds. */
const SURE_MS = 2_000;
const TALLEST_PX = 240;

interface ComposerProps {
  isRunning: boolean;
  isOwnTurn: boolean;
  /** The user's earlier prompts in this conversation. */
  past: readonly string[];
  /** Resolves with false if the prompt was not accepted. */
  send(prompt: string): Promise<boolean>;
  stop(): void;
}

function Composer({ isRunning, isOwnTurn, past, send, stop }: ComposerProps) {
  const [text, setText] = useState("");
  const [isSure, setSure] = useState(false);
  /** The place in `past` of the prompt that the user has recalled. */
  const [recalled, setRecalled] = useState(past.length);
  const field = useRef<HTMLTextAreaElement>(null);
  const isBlank = text.trim() === "";
  useEffect(() => field.current?.focus(), []);
  useEffect(() => {
    const { current } = field;
    if (current === null) return;
    current.style.height = "auto";
    current.style.height = `${Math.min(current.scrollHeight, TALLEST_PX)}px`;
  }, [text]);
  // Put the cursor to the start of a recalled prompt, so that the next Up goes on.
  useLayoutEffect(() => field.current?.setSelectionRange(0, 0), [recalled]);
  useEffect(() => {
    if (!isSure) return;
    const timer = setTimeout(() => setSure(false), SURE_MS);
    return () => clearTimeout(timer);
  }, [isSure]);
  const submit = async () => {
    if (isBlank || isOwnTurn) return;
    setText("");
    // Put a refused prompt back so that the user can correct it, unless the user has begun to write another one.
    if (!(await send(text))) setText((now) => (now === "" ? text : now));
  };
  /** Shows an earlier or later prompt, unless the user is writing or has moved the cursor. */
  const recall = (event: KeyboardEvent, step: -1 | 1) => {
    const at = text === "" ? past.length : recalled;
    const isUntouched = text === (past[at] ?? "") && field.current?.selectionEnd === 0;
    const next = at + step;
    if (!isUntouched || next < 0 || next > past.length) return;
    event.preventDefault();
    setText(past[next] ?? "");
    setRecalled(next);
  };
  const press = (event: KeyboardEvent) => {
    if (event.key === "ArrowUp") recall(event, -1);
    if (event.key === "ArrowDown") recall(event, 1);
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      void submit();
    }
    if (event.key === "Escape" && isRunning) {
      if (isSure) stop();
      setSure(!isSure);
    }
  };
  return (
    <form
      class="composer"
      onSubmit={(event) => {
        event.preventDefault();
        void submit();
      }}
    >
      <div class="composer-box">
        <textarea
          ref={field}
          rows={1}
          dir="auto"
          aria-label="Prompt"
          aria-describedby="composer-hint"
          placeholder="Write a prompt"
          value={text}
          onInput={({ currentTarget }) => setText(currentTarget.value)}
          onKeyDown={press}
        />
        {isRunning ? (
          <Button act={stop}>Stop</Button>
        ) : (
          <button type="submit" class="button primary" disabled={isBlank}>
            Send
          </button>
        )}
      </div>
      <p id="composer-hint" class="composer-hint" role={isSure ? "status" : undefined}>
        {isSure
          ? "Press Esc again to stop the turn."
          : "Enter sends, Shift+Enter begins a new line, Up recalls a prompt, Esc twice stops."}
      </p>
    </form>
  );
}

/** Shows the members of a session. The owner can change them. */
function Members({ session: { id, owner, members }, mayChange }: { session: Session; mayChange: boolean }) {
  const save = async ({ names = "" }: Values) => {
    if (mayChange) await ask("PATCH", sessionPath(id), { body: { members: namesIn(names) } });
  };
  return (
    <Dialog title={`Members of ${id}`} action={mayChange ? "Save" : "Close"} act={save}>
      <p>
        <bdi>{owner}</bdi> owns this session. Members can read all of it, and begin turns.
      </p>
      {mayChange ? (
        <Field name="names" label="Members" initial={members.join(", ")} hint="User ids, separated by commas." />
      ) : (
        <ul class="names">
          {members.map((name) => (
            <li key={name} dir="auto">
              {name}
            </li>
          ))}
        </ul>
      )}
    </Dialog>
  );
}
