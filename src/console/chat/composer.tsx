import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";

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

export function Composer({ isRunning, isOwnTurn, past, send, stop }: ComposerProps) {
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
          <button type="button" class="button" onClick={stop}>
            Stop
          </button>
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
