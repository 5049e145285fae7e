import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { type Problem, problemFrom } from "../api/client.js";
import { ProblemNotice } from "./notice.js";

interface DialogProps {
  title: string;
  /** The text of the button for the action. */
  action: string;
  isDangerous?: boolean;
  /** Whether the dialog only shows something, so that there is nothing to cancel. */
  isNotice?: boolean;
  children?: ComponentChildren;
  /** Runs the action. The dialog closes when this resolves. */
  act(): Promise<void>;
  close(): void;
}

/** A modal dialog with one action. It is also the confirmation of a dangerous action. */
export function Dialog({ title, action, isDangerous = false, isNotice = false, children, act, close }: DialogProps) {
  const dialog = useRef<HTMLDialogElement>(null);
  const [problem, setProblem] = useState<Problem>();
  const [isBusy, setBusy] = useState(false);
  useEffect(() => {
    const before = document.activeElement;
    dialog.current?.showModal();
    return () => {
      if (before instanceof HTMLElement && before.isConnected) before.focus();
    };
  }, []);
  const submit = async (event: Event) => {
    event.preventDefault();
    setBusy(true);
    try {
      await act();
      close();
    } catch (error) {
      setProblem(problemFrom(error));
      setBusy(false);
    }
  };
  return (
    <dialog ref={dialog} aria-labelledby="dialog-title" onClose={close}>
      <form onSubmit={(event) => void submit(event)}>
        <h2 id="dialog-title" dir="auto">
          {title}
        </h2>
        {children}
        <ProblemNotice problem={problem} />
        <div class="dialog-buttons">
          {!isNotice && (
            <button type="button" class="button" onClick={close}>
              Cancel
            </button>
          )}
          <button type="submit" class={`button ${isDangerous ? "danger" : "primary"}`} disabled={isBusy}>
            {action}
          </button>
        </div>
      </form>
    </dialog>
  );
}

interface FieldProps {
  label: string;
  hint?: string;
  value: string;
  onValue(value: string): void;
  type?: string;
  placeholder?: string;
  isFirst?: boolean;
}

export function Field({ label, hint, value, onValue, type = "text", placeholder, isFirst = false }: FieldProps) {
  const input = useRef<HTMLInputElement>(null);
  useEffect(() => {
    if (isFirst) input.current?.focus();
  }, [isFirst]);
  const id = `field-${label.toLowerCase().replaceAll(/\W+/g, "-")}`;
  return (
    <div class="field">
      <label for={id}>{label}</label>
      <input
        ref={input}
        id={id}
        type={type}
        dir="auto"
        value={value}
        placeholder={placeholder}
        autocomplete="off"
        spellcheck={false}
        aria-describedby={hint === undefined ? undefined : `${id}-hint`}
        onInput={({ currentTarget }) => onValue(currentTarget.value)}
      />
      {hint !== undefined && (
        <p id={`${id}-hint`} class="quiet">
          {hint}
        </p>
      )}
    </div>
  );
}
